#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# run.sh [SCRIPT]... - runs the named test scripts, or all that are here, prints
# their KTAP one after the other, and how long each took. --list only lists them.
# The last line is
#
#	# totals: pass:N fail:N skip:N
#
# A script that ends without all of its planned results has one failure more,
# and a script that could not run at all one skip. The exit status is 0 only
# when nothing failed.

set -uo pipefail
cd "$(dirname "$0")" || exit 1

# All that run tests of their own, without arguments.
all() { grep -lE '^[a-z]+_tests "[$]@"$' ./*.sh | sed 's|^[.]/||'; }

if [ "${1:-}" = --list ]; then
	all
	exit
fi
if (($# == 0)); then
	mapfile -t scripts <<<"$(all)"
	set -- "${scripts[@]}"
fi

pass=0 fail=0 skip=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for script; do
	script=${script##*/}
	script=${script%.sh}.sh
	start=$SECONDS
	echo "# run: $script"
	if [ -e "$script" ]; then
		bash "./$script" | tee "$log"
	else
		echo "not ok 1 $script: no such script" | tee "$log"
	fi
	read -r ok not skipped missing <<<"$(awk '
		/^1\.\.[0-9]+/ { plan = substr($1, 4); if (plan == 0) skipped++ }
		/^ok .* # SKIP/ { skipped++; seen++; next }
		/^ok / { ok++; seen++ }
		/^not ok / { bad++; seen++ }
		END { print ok + 0, bad + 0, skipped + 0, (plan == "" || seen + 0 < plan) && !bad }
		' "$log")"
	if ((missing)); then
		echo "# $script ended before all of its tests had run"
		not=$((not + 1))
	fi
	pass=$((pass + ok)) fail=$((fail + not)) skip=$((skip + skipped))
	echo "# ran: $script in $((SECONDS - start)) s: pass:$ok fail:$not skip:$skipped"
done
echo "# totals: pass:$pass fail:$fail skip:$skip"
((fail == 0))
