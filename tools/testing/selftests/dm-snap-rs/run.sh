#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# run.sh [SCRIPT]... - runs the named test scripts, or all that are here, prints
# their KTAP one after the other, and how long each took. --list only lists them.
# The last line is
#
#	# totals: pass:N fail:N skip:N
#
# There are further results at the end: the module can be unloaded and, where the kernel
# watches itself, nothing leaked (kmemleak), and lockdep was at work until then.
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

KMEMLEAK=/sys/kernel/debug/kmemleak

# module_unloads - unloads the module, which nobody uses any more.
module_unloads() {
	[ ! -d /sys/module/dm_snap_rs ] || rmmod dm_snap_rs
}

# proving 0|1 - whether lockdep looks at the order of locks.
proving() {
	[ ! -e /proc/sys/kernel/prove_locking ] || echo "$1" >/proc/sys/kernel/prove_locking
}

# find_lost - has kmemleak look for memory that is lost. It reports what a second scan finds
# unchanged. False when it has switched itself off, as it does without memory of its own.
find_lost() {
	local rc=0
	# On User-Mode Linux, a scan itself breaks a rule of locks.
	proving 0
	{ echo scan && echo scan; } >$KMEMLEAK || rc=1
	proving 1
	return $rc
}

# nothing_leaked - fails, with a list, when somebody lost memory since the start. What is
# younger than 5 s is not looked at. First it's looked for while the module is still
# there, for the names of its functions.
nothing_leaked() {
	sleep 6
	find_lost || return 1
	cat $KMEMLEAK
	module_unloads || return 1
	[ ! -d /sys/module/dm_snapshot ] || rmmod dm_snapshot || return 1
	sleep 6
	find_lost || return 1
	[ -z "$(cat $KMEMLEAK)" ] || {
		echo "after the modules were unloaded:"
		cat $KMEMLEAK
		false
	}
}

# lockdep_works - fails when lockdep has switched itself off, as it does after its
# first report, or when its tables are full.
lockdep_works() {
	grep -q '^ *debug_locks: *1$' /proc/lockdep_stats || {
		cat /proc/lockdep_stats
		false
	}
}

# at_the_end - the further results, as a script of its own would give them.
at_the_end() {
	local checks=() c n=0
	[ ! -e /proc/lockdep_stats ] || checks+=(lockdep_works)
	if [ -e $KMEMLEAK ]; then checks+=(nothing_leaked); else checks+=(module_unloads); fi
	echo "# run: at the end"
	echo "1..${#checks[@]}"
	for c in "${checks[@]}"; do
		n=$((n + 1))
		if $c >"$log" 2>&1; then
			pass=$((pass + 1))
			echo "ok $n ${c//_/ }"
		else
			fail=$((fail + 1))
			sed 's/^/# /' "$log" | head -n 200
			echo "not ok $n ${c//_/ }"
		fi
	done
}

pass=0 fail=0 skip=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if [ -e $KMEMLEAK ]; then
	# What the kernel lost while it booted is none of ours; it may have done so just now.
	sleep 6
	find_lost
	echo clear >$KMEMLEAK
fi
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
at_the_end
echo "# totals: pass:$pass fail:$fail skip:$skip"
((fail == 0))
