#!/usr/bin/env bash
# Builds HEAD a second time, in a fresh clone in another folder, and compares
# every binary, plugin and image with what was built here: same bytes or failure.
# COLD=1 gives the second build an empty Go cache too (half an hour on 2 cores).
source "$(dirname "$0")/lib.sh"
cd "$ROOT"
[ -z "$(git status --porcelain)" ] || die "commit or stash first: the second build is of HEAD"
there=$OUT/reproducible
rm -rf "$there"
trap 'chmod -R u+w "$there" && rm -rf "$there"' EXIT
git clone -q "$ROOT" "$there/another/folder"
[ -z "${COLD:-}" ] || export GOCACHE=$there/cache
# Debian's packages are an input, as the Go modules are.
mkdir -p "$there/another/folder/_output/$ARCH"
cp -a "$OUT/$ARCH/debs" "$there/another/folder/_output/$ARCH/debs"
echo "reproducible: building $(git rev-parse --short HEAD) again in another folder"
for folder in "$ROOT" "$there/another/folder"; do
	make -s -C "$folder" test-images >"$there/build.log" 2>&1 || { tail -20 "$there/build.log"; die "building in $folder failed"; }
done
sums() { (cd "$1/_output/$ARCH" && find bin cni images pristine -type f | sort | xargs sha256sum); }
diff <(sums "$ROOT") <(sums "$there/another/folder") || die "the lines above differ: these files are not reproducible"
echo "reproducible: $(sums "$ROOT" | wc -l) files are the same bytes"
