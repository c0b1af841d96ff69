#!/usr/bin/env bash
# Writes the table of patches in staging/kubernetes/README.md from their headers.
exec "$(dirname "$0")/verify-patches.sh" -update
