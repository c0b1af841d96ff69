#!/usr/bin/env bash
# Packs what was built into _output/release: one archive of binaries, CNI plugins
# and images for this architecture, laid out as it goes onto a host, and the
# checksums. The same commit gives the same bytes.
source "$(dirname "$0")/lib.sh"
cd "$ROOT"
version=$KUBERNETES_VERSION-$SKERRY_REVISION
name=skerry-$version-linux-$ARCH
stage=$OUT/$ARCH/release
release=$OUT/release
rm -rf "$stage"
mkdir -p "$stage/usr/local/bin" "$stage/opt/cni/bin" "$stage/var/lib/skerry/images" "$release"
cp "$BIN"/* "$stage/usr/local/bin/"
cp "$OUT/$ARCH"/cni/* "$stage/opt/cni/bin/"
cp "$OUT/$ARCH"/images/*.tar "$stage/var/lib/skerry/images/"
echo "release: packing $name.tar.gz (a minute or two)"
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="$KUBERNETES_BUILD_DATE" --mode=u+rwX,go+rX,go-w \
	-C "$stage" -cf - usr opt var | gzip -n >"$release/$name.tar.gz"
rm -rf "$stage"
(cd "$release" && sha256sum ./*.tar.gz | sed 's|\./||' >sha256sums.txt && cat sha256sums.txt)
echo "release: unpack on a host with: tar -C / --no-overwrite-dir -xzf $name.tar.gz; then skerry init, or skerry join (docs/install.md)"
