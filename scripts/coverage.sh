#!/usr/bin/env bash
# coverage.sh PROFILE MINIMUM: statements covered, by package and in all. Fails below MINIMUM percent. The profile has a
# block once for each test binary: it is covered when any of them ran it.
source "$(dirname "$0")/lib.sh"

awk -v minimum="$2" '
  NR > 1 {
    n[$1] = $2
    if ($3 > 0) hit[$1] = 1
  }
  END {
    for (block in n) {
      pkg = block
      sub(/\/[^\/]*$/, "", pkg)
      all[pkg] += n[block]; total += n[block]
      if (block in hit) { some[pkg] += n[block]; covered += n[block] }
    }
    for (pkg in all) printf "%6.1f %%  %s\n", 100 * some[pkg] / all[pkg], pkg | "sort -k3"
    close("sort -k3")
    if (total == 0) { print "no statements in the profile"; exit 1 }
    percent = 100 * covered / total
    printf "%6.1f %%  of %d statements (at least %d %% wanted)\n", percent, total, minimum
    exit percent < minimum
  }' "$1"
