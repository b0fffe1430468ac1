# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# What the race tests share: devices whose chosen requests stall (tools/stall),
# and I/O in the background that can be waited for.  Sourced after lib.sh; a
# script ends with stall_tests instead of run_tests.
#
# All devices are served by one server with one log, so that a test can say what
# reached DEV before what reached COW.  Places are counted in blocks of 4 KiB.
# Data is one letter a block: o old, n new (through ORIGIN), s written to SNAP;
# a text such as "oon" stands for three blocks.

# The limit on each wait, and that on a whole test, for I/O that is not waited for
# in the background.  They are generous, since the processor may be emulated, but
# end before the kernel reports tasks as hung, at 120 s or, where the tests are given
# more time, later.
WAIT=$((45 * SLOW))
LIMIT=${DM_SNAP_RS_LIMIT:-100}
# For how long something that must not happen is given the chance to.
GRACE=$SLOW

# The server lies beside the scripts when they are installed, beside their folder
# in the virtual machine, and in tools/stall in the work tree.
for STALL_DIR in "$LIB_DIR" "$LIB_DIR/../stall" "$LIB_DIR/../../../stall"; do
	[ ! -e "$STALL_DIR/stall.py" ] || break
done

declare -A NBD=() ENDED=() HELD=() FULL=()
SERVER=

# ---------------------------------------------------------------------------
# The server: one for the whole script

# stall_start NAME:SIZE... - starts the server and connects its devices, whose
# paths are then in NBD[NAME].  Prints the reason and is false where it can't.
stall_start() {
	local c d i=0 serve=(--unix "$TMP/nbd.sock") server=(-unix "$TMP/nbd.sock")
	for c in nbdkit nbd-client python3; do
		command -v $c >/dev/null || {
			echo "no $c here"
			return 1
		}
	done
	modprobe nbd || {
		echo "no nbd here"
		return 1
	}
	# Lockdep takes the reading lock of the driver's end of a Unix socket, which is taken
	# within the block layer, and that of a program's end, within which memory may be
	# paged in, for one and the same. Of TCP sockets it knows that they are not.
	if [ -e /proc/lockdep ]; then
		serve=(--ipaddr 127.0.0.1 --port 10809) server=(127.0.0.1 10809)
	fi
	# Its standard output would otherwise be mixed with the tests' results.
	nbdkit --foreground --threads 160 "${serve[@]}" python \
		"$STALL_DIR/stall.py" control="$TMP/stall.sock" "${@/#/device=}" \
		>"$TMP/server.log" 2>&1 </dev/null &
	SERVER=$!
	# It listens for both before this is there.
	if ! wait_for 60 test -S "$TMP/stall.sock"; then
		echo "the server of stalling devices does not start: $(tail -n 1 "$TMP/server.log")"
		return 1
	fi
	for d in "${@%:*}"; do
		while [ -e /sys/block/nbd$i/pid ]; do
			i=$((i + 1))
		done
		NBD[$d]=/dev/nbd$i
		# With a time-out of 0 the driver never gives a held request up.
		nbd-client "${server[@]}" "/dev/nbd$i" -N "$d" -b 512 -timeout 0 \
			>>"$TMP/server.log" 2>&1
		if ! wait_for 20 test -e /sys/block/nbd$i/pid; then
			echo "cannot connect /dev/nbd$i: $(tail -n 1 "$TMP/server.log")"
			return 1
		fi
		blk_exact "/dev/nbd$i"
	done
}

# stall_stop - disconnects the devices and ends the server.
stall_stop() {
	local d
	[ -n "$SERVER" ] || return 0
	for d in "${NBD[@]}"; do
		nbd-client -d "$d"
	done >/dev/null 2>&1
	"$STALL_DIR/stallctl" "$TMP/stall.sock" quit >/dev/null 2>&1
	wait_for 20 eval "! kill -0 $SERVER 2>/dev/null" || kill -KILL "$SERVER"
	wait "$SERVER" 2>/dev/null
	SERVER=
}

# at_exit_stall - as the library's at_exit, with the server taken down once
# nothing stands on its devices any more.
at_exit_stall() {
	local rc=$?
	# A process of the background that is ended before it has become what it
	# should be, still has the traps of the script.
	((BASHPID == $$)) || exit $rc
	remove_all >/dev/null 2>&1
	stall_stop
	(exit $rc)
	at_exit
}

# stall_tests [FUNCTION]... - as run_tests, with the devices dev, cow and cow2.
stall_tests() {
	local all i letter reason
	if (($# == 0)); then
		mapfile -t all < <(sed -n 's/^\(test_[a-z0-9_]*\)().*/\1/p' "$0")
		set -- "${all[@]}"
	fi
	for letter in o n s; do
		printf -v "FULL[$letter]" '%4096s' ''
		FULL[$letter]=${FULL[$letter]// /$letter}
		for ((i = 0; i < 16; i++)); do
			printf %s "${FULL[$letter]}"
		done >"$TMP/data.$letter"
	done
	trap at_exit_stall EXIT
	# The reason comes by a file: in a subshell the server's number were lost.
	if ! stall_start dev:16M cow:16M cow2:16M >"$TMP/reason"; then
		reason=$(cat "$TMP/reason")
		ktap_print_header
		ktap_skip_all "$reason"
		exit "$KSFT_SKIP"
	fi
	begin $#
	trap at_exit_stall EXIT
	while (($# > 0)); do
		run_test "$1" "$(tr _ ' ' <<<"${1#test_}")"
		shift
	done
	finish
}

# ---------------------------------------------------------------------------
# The session with the server: one for each test

# Answers come in variables and not on the standard output: each $(...) would be
# one more process, and these are what costs time in an emulated machine.

# stall COMMAND... - one command to the server, as described in stall.py.  Leaves
# the answer in ANSWER; false, with the server's text there, when it refuses.
stall() {
	local line
	ANSWER=
	echo "$*" >&"$STALL_TO"
	while read -r -t $((WAIT + 15)) line <&"$STALL_FROM"; do
		case $line in
		ok) return 0 ;;
		error:*)
			ANSWER=$line
			return 1
			;;
		*) ANSWER+=$line$'\n' ;;
		esac
	done
	fail "stall $*: no answer"
}

# show_log - puts what the devices saw since $mark into the test's log: the begin,
# which says what happened, and the end.
show_log() {
	stall log "$mark"
	say "$ANSWER" | awk '
		NR <= 30 { print; next }
		{ last[NR % 15] = $0 }
		END { for (i = NR - 14; i <= NR; i++) if (i > 30) print last[i % 15] }'
}

# session - opens the session, with all devices in their first state.  When the
# test ends, in whichever way, the server lets everything go.
session() {
	coproc "$STALL_DIR/stallctl" "$TMP/stall.sock"
	# Copies of the descriptors, because bash closes its own in subshells.
	exec {STALL_FROM}<&"${COPROC[0]}" {STALL_TO}>&"${COPROC[1]}"
	stall lease
	stall fill dev 111 # the letter o
	stall fill cow 0
	stall fill cow2 0
	set_mark
}

# set_mark - what was logged until now is of no interest.
set_mark() {
	stall last
	mark=${ANSWER%$'\n'}
}

# setup STORE [CHUNK-BLOCKS] - ORIGIN and one snapshot of it, named snap.
setup() {
	session
	origin_create origin "${NBD[dev]}"
	snap_add origin snap "${NBD[dev]}" "${NBD[cow]}" "$1" $((${2:-1} * 8))
	set_mark
}

# setup_second STORE CHUNK-BLOCKS - a second snapshot, named snap2.
setup_second() {
	snap_add origin snap2 "${NBD[dev]}" "${NBD[cow2]}" "$1" $(($2 * 8))
	set_mark
}

# seen EVENT OP DEVICE BLOCK COUNT [SECONDS] - waits until a request that touches
# these blocks has begun or ended since $mark; the number of the event is in SEEN.
seen() {
	stall wait-log "$1" "$2" "$3" $(($4 * 4096)) $(($5 * 4096)) "${6:-$WAIT}" "$mark" ||
		return 1
	SEEN=${ANSWER%% *}
}

# not_written BLOCK COUNT [WHEN] - fails when a write of these blocks reaches DEV.
not_written() {
	if seen begin write dev "$1" "$2" "$GRACE"; then
		show_log
		fail "the origin write reached DEV ${3:-while a snapshot read was out}"
	fi
	# Nothing but the time that is up may stand for "not written".
	[[ $ANSWER == *"no begin of such a write" ]] || fail "$ANSWER"
}

# ended_before ID... - fails when a write reached DEV while one of these reads was
# out that touches the same sectors.
ended_before() {
	stall log "$mark"
	awk -v ids=" $* " '
		$2 == "begin" && index(ids, " " $3 " ") { from[$3] = $6; to[$3] = $6 + $7 }
		$2 == "end" { delete from[$3] }
		$2 == "begin" && $4 == "write" && $5 == "dev" {
			for (id in from)
				if (from[id] < $6 + $7 && $6 < to[id]) { bad = 1; exit }
		}
		END { exit bad }' <<<"$ANSWER" || {
		show_log
		fail "the origin write reached DEV before the reads ($*) had ended"
	}
}

# ---------------------------------------------------------------------------
# I/O

# fetch NAME BLOCK COUNT - reads blocks in one piece; their letters are in FETCHED:
# "?" where a block is mixed or zero.
fetch() {
	local LC_ALL=C file=$TMP/fetch.$BASHPID data='' block i
	FETCHED=
	dd if="$(path "$1")" of="$file" bs=$(($3 * 4096)) count=1 iflag=direct,skip_bytes \
		skip=$(($2 * 4096)) status=none || return 1
	# Zeroes are dropped here, so the blocks behind one are not told apart.
	read -r -N $(($3 * 4096)) data <"$file" || true
	for ((i = 0; i < $3; i++)); do
		block=${data:i*4096:4096}
		if [ -n "$block" ] && [ "$block" = "${FULL[${block:0:1}]-}" ]; then
			FETCHED+=${block:0:1}
		else
			FETCHED+='?'
		fi
	done
}

# get NAME BLOCK COUNT - as fetch, for a job: prints the letters.
get() {
	fetch "$@" && echo "$FETCHED"
}

# put NAME BLOCK COUNT LETTER - writes blocks in one piece.
put() {
	dd if="$TMP/data.$4" of="$(path "$1")" bs=$(($3 * 4096)) count=1 \
		oflag=direct,seek_bytes seek=$(($2 * 4096)) conv=notrunc status=none
}

# shows NAME BLOCK TEXT - fails unless the blocks have these letters.
shows() {
	fetch "$1" "$2" ${#3}
	equal "$FETCHED" "$3" "blocks of $1 from $2"
}

# from_cow NAME BLOCK TEXT - true when a read of the snapshot has this data and
# came without a read of DEV.
from_cow() {
	local before
	stall last
	before=${ANSWER%$'\n'}
	fetch "$1" "$2" ${#3}
	stall log "$before"
	[ "$FETCHED" = "$3" ] && [[ ! $ANSWER =~ begin\ [0-9]+\ read\ dev ]]
}

# covered NAME BLOCK TEXT - waits until these blocks of a snapshot are answered
# from COW: the exception is complete.
covered() {
	wait_for 45 from_cow "$@" || {
		show_log
		fail "$1 is not answered from COW with '$3', but shows '$FETCHED'"
	}
}

# start JOB COMMAND... - runs a command in the background.
start() {
	local job=$1 fd
	shift
	rm -f "$TMP/job.$job"
	mkfifo "$TMP/job.$job"
	exec {fd}<>"$TMP/job.$job"
	ENDED[$job]=$fd
	{
		rc=0
		"$@" >"$TMP/out.$job" || rc=$?
		echo $rc >&"$fd"
	} &
}

# running JOB - fails when the job has ended.
running() {
	if read -r -t 0 -u "${ENDED[$1]}"; then
		fail "the $1 has ended too early"
	fi
}

# finished JOB [STATUS] - waits until the job has ended; its output is then in
# out.JOB.
finished() {
	local rc
	read -r -t "$WAIT" -u "${ENDED[$1]}" rc || {
		show_log
		fail "the $1 does not end"
	}
	equal "$rc" "${2:-0}" "the end of the $1"
}

# held_read JOB NAME BLOCK COUNT - starts a read of a snapshot, all parts of which
# are held on DEV; later reads of DEV pass.  The requests are in HELD[JOB].
held_read() {
	local before id rest
	stall last
	before=${ANSWER%$'\n'}
	stall hold read dev $(($3 * 4096)) $(($4 * 4096))
	start "$1" get "$2" "$3" "$4"
	stall wait-covered read dev $(($3 * 4096)) $(($4 * 4096)) "$WAIT" "$before"
	HELD[$1]=
	while read -r id rest; do
		HELD[$1]+="$id "
	done <<<"${ANSWER%$'\n'}"
	stall unhold
}

# let_go JOB... - lets held reads go on.
let_go() {
	local j
	for j in "$@"; do
		stall release "${HELD[$j]}"
	done
}

# was_read JOB TEXT - waits until a read has ended; fails unless it has this data.
was_read() {
	finished "$1"
	equal "$(<"$TMP/out.$1")" "$2" "what the $1 was given"
}

# follows JOB BLOCK COUNT READER... - waits until the origin write of the job has
# reached DEV and has ended, with nothing else to push it.  Fails when it reached
# DEV before the end of any of these readers' requests.
follows() {
	local job=$1 block=$2 count=$3 r ids=''
	shift 3
	seen begin write dev "$block" "$count" || {
		show_log
		fail "the $job does not follow"
	}
	finished "$job"
	for r in "$@"; do
		ids+="${HELD[$r]} "
	done
	# shellcheck disable=SC2086 # many words are wanted
	ended_before $ids
}
