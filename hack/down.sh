#!/usr/bin/env bash
# Removes every sandbox of this checkout and every trace of it.
source "$(dirname "$0")/lib.sh"
cd "$ROOT"
export SKERRY_SANDBOX_ROOT=${SKERRY_SANDBOX_ROOT:-$OUT/sandbox}
skerry=$OUT/$HOST_ARCH/bin/skerry
if [ -x "$skerry" ]; then
	exec "$skerry" sandbox delete --all
fi
[ -z "$(ls -A "$SKERRY_SANDBOX_ROOT" 2>/dev/null)" ] ||
	die "there are sandboxes in $SKERRY_SANDBOX_ROOT, but $skerry, which removes them, is missing: make build, then make down"
echo "down: no sandbox was made here"
