# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# KTAP output for shell tests, by the function names of the kernel's own
# tools/testing/selftests/kselftest/ktap_helpers.sh, so that the scripts here
# run inside a kernel tree and outside of one.

KSFT_PASS=0
KSFT_FAIL=1
KSFT_SKIP=4

KTAP_TESTNO=1
KTAP_CNT_PASS=0
KTAP_CNT_FAIL=0
KTAP_CNT_SKIP=0
KTAP_CNT_XFAIL=0
KTAP_PLAN=0

# The first line of every KTAP file.
ktap_print_header() {
	echo "TAP version 13"
}

# ktap_print_msg TEXT... - a diagnostic line.
ktap_print_msg() {
	echo "# $*"
}

# ktap_set_plan COUNT - how many results will follow.
ktap_set_plan() {
	KTAP_PLAN=$1
	echo "1..$1"
}

# ktap_skip_all REASON... - a whole file that cannot run here.
ktap_skip_all() {
	echo "1..0 # SKIP $*"
}

# __ktap_test RESULT NAME [DIRECTIVE] - one result line.
__ktap_test() {
	echo "$1 $KTAP_TESTNO $2${3:+ # $3}"
	KTAP_TESTNO=$((KTAP_TESTNO + 1))
}

# ktap_test_pass NAME
ktap_test_pass() {
	__ktap_test ok "$1"
	KTAP_CNT_PASS=$((KTAP_CNT_PASS + 1))
}

# ktap_test_fail NAME
ktap_test_fail() {
	__ktap_test "not ok" "$1"
	KTAP_CNT_FAIL=$((KTAP_CNT_FAIL + 1))
}

# ktap_test_skip NAME [REASON] - the test could not run.
ktap_test_skip() {
	__ktap_test ok "$1" "SKIP${2:+ $2}"
	KTAP_CNT_SKIP=$((KTAP_CNT_SKIP + 1))
}

# ktap_test_xfail NAME - the test failed, as it is known to.
ktap_test_xfail() {
	__ktap_test ok "$1" XFAIL
	KTAP_CNT_XFAIL=$((KTAP_CNT_XFAIL + 1))
}

# ktap_print_totals - the counts, in the form that kselftest prints.
ktap_print_totals() {
	echo "# Totals: pass:$KTAP_CNT_PASS fail:$KTAP_CNT_FAIL" \
		"xfail:$KTAP_CNT_XFAIL xpass:0 skip:$KTAP_CNT_SKIP error:0"
}

# ktap_finished - prints the totals and ends the script: with success only if
# every planned test gave its result and none failed.
ktap_finished() {
	ktap_print_totals
	if ((KTAP_CNT_FAIL > 0 || KTAP_TESTNO - 1 != KTAP_PLAN)); then
		exit "$KSFT_FAIL"
	fi
	if ((KTAP_CNT_PASS == 0 && KTAP_CNT_SKIP > 0)); then
		exit "$KSFT_SKIP"
	fi
	exit "$KSFT_PASS"
}
