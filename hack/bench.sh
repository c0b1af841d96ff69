#!/usr/bin/env bash
# Measures what Skerry costs against upstream, in a sandbox made for the run,
# and keeps the rows in _output/bench/*.json. Ends with 0 whether or not goals
# are met; flags go to the program (see --help).
source "$(dirname "$0")/lib.sh"
cd "$ROOT"
[ "$ARCH" = "$HOST_ARCH" ] || die "cannot measure $ARCH binaries on $HOST_ARCH"
export SKERRY_SANDBOX_ROOT=${SKERRY_SANDBOX_ROOT:-$OUT/sandbox} SKERRY_DIST=${SKERRY_DIST:-$OUT/$ARCH}
mkdir -p "$OUT/bench"
go build -o "$OUT/bench/bench" ./test/bench/cmd
exec "$OUT/bench/bench" -out "$OUT/bench" "$@"
