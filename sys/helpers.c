// SPDX-License-Identifier: GPL-2.0
/*
 * The wrappers that sys/helpers.h declares, and what a module in Rust can't say
 * for itself: parameters that are writable at run time, and its aliases.
 */
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/rcupdate.h>
#include <linux/sched/mm.h>
#include <linux/workqueue.h>

#include "helpers.h"

/* Bios. */

void dmsnap_bio_set_dev(struct bio *bio, struct block_device *bdev)
{
	bio_set_dev(bio, bdev);
}

void dmsnap_bio_end(struct bio *bio, int errno)
{
	bio->bi_status = errno_to_blk_status(errno);
	bio_endio(bio);
}

/* device-mapper sends the bio again, if its device is being suspended. */
void dmsnap_bio_requeue(struct bio *bio)
{
	bio->bi_status = BLK_STS_DM_REQUEUE;
	bio_endio(bio);
}

/*
 * Copies the data of a bio into the pages of a list, from a byte of the first one on.
 * The list must be long enough.
 */
void dmsnap_bio_copy_to(struct bio *bio, struct page_list *list, unsigned int offset)
{
	struct bvec_iter iter;
	struct bio_vec bv;

	/* Each of these pieces lies in one page. */
	bio_for_each_segment(bv, bio, iter) {
		char *from = bvec_kmap_local(&bv);
		unsigned int done = 0;

		while (done < bv.bv_len) {
			unsigned int now = min_t(unsigned int, bv.bv_len - done, PAGE_SIZE - offset);

			memcpy_to_page(list->page, offset, from + done, now);
			done += now;
			offset += now;
			if (offset == PAGE_SIZE) {
				list = list->next;
				offset = 0;
			}
		}
		kunmap_local(from);
	}
}

/* Pages. */

struct page *dmsnap_zero_page(void)
{
	return ZERO_PAGE(0);
}

/* Allocations that do no I/O. */

unsigned int dmsnap_noio_save(void)
{
	return memalloc_noio_save();
}

void dmsnap_noio_restore(unsigned int flags)
{
	memalloc_noio_restore(flags);
}

/* Workqueues. */

struct workqueue_struct *dmsnap_alloc_workqueue(const char *name)
{
	return alloc_workqueue("%s", WQ_MEM_RECLAIM | WQ_PERCPU, 0, name);
}

void dmsnap_drain_workqueue(struct workqueue_struct *wq)
{
	drain_workqueue(wq);
}

/* A function-like macro where there is no preemption. */
void dmsnap_synchronize_rcu_tasks(void)
{
	synchronize_rcu_tasks();
}

/* The work of a delayed work, which must be one. */
void dmsnap_flush_delayed_work(struct work_struct *work)
{
	flush_delayed_work(to_delayed_work(work));
}

/* Block devices. */

bool dmsnap_bdev_read_only(struct block_device *bdev)
{
	return bdev_read_only(bdev);
}

sector_t dmsnap_bdev_nr_sectors(struct block_device *bdev)
{
	return bdev_nr_sectors(bdev);
}

unsigned int dmsnap_bdev_logical_block_size(struct block_device *bdev)
{
	return bdev_logical_block_size(bdev);
}

unsigned int dmsnap_bdev_max_discard_sectors(struct block_device *bdev)
{
	return bdev_max_discard_sectors(bdev);
}

/*
 * Module parameters.  Those of the Rust module! macro are set once, at load;
 * these can be changed at any time.
 */

static int dmsnap_cow_threshold = 2048;
module_param_named(snapshot_cow_threshold, dmsnap_cow_threshold, int, 0644);
MODULE_PARM_DESC(snapshot_cow_threshold,
		 "Number of chunks of an origin that may be on their way to its COW devices at a time");

int dmsnap_param_cow_threshold(void)
{
	return READ_ONCE(dmsnap_cow_threshold);
}

static unsigned int dmsnap_no_space_timeout = 60;
module_param_named(no_space_timeout, dmsnap_no_space_timeout, uint, 0644);
MODULE_PARM_DESC(no_space_timeout,
		 "Seconds that writes wait for a full COW device to grow, with the feature queue_if_no_space; 0 for ever");

unsigned int dmsnap_param_no_space_timeout(void)
{
	return READ_ONCE(dmsnap_no_space_timeout);
}

static bool dmsnap_standard_names;
module_param_named(standard_names, dmsnap_standard_names, bool, 0444);
MODULE_PARM_DESC(standard_names,
		 "Register the targets under the kernel's own names as well: snapshot, snapshot-origin, snapshot-merge");

bool dmsnap_param_standard_names(void)
{
	return dmsnap_standard_names;
}

/* device-mapper asks for the module of a target by dm-<name>. */
MODULE_ALIAS("dm-snapshot-rs");
MODULE_ALIAS("dm-snap-origin-rs");
MODULE_ALIAS("dm-snap-merge-rs");
MODULE_ALIAS("dm-snapshot");
MODULE_ALIAS("dm-snapshot-origin");
MODULE_ALIAS("dm-snapshot-merge");
