#!/usr/bin/env bash
# Removes every sandbox and every trace of it.
source "$(dirname "$0")/lib.sh"
if [ ! -x "$BIN/skerry" ]; then
	echo "down: nothing was built here, so no sandbox runs from here"
	exit 0
fi
"$BIN/skerry" sandbox delete --all
