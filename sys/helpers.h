/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What bindgen reads for sys/mod.rs: the headers of device-mapper and its
 * clients, and wrappers around what C offers as macros and inline functions
 * only.  Everything here begins with dmsnap_ or DMSNAP_.
 */
#ifndef DMSNAP_HELPERS_H
#define DMSNAP_HELPERS_H

#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/device-mapper.h>
#include <linux/dm-bufio.h>
#include <linux/dm-io.h>
#include <linux/dm-ioctl.h>
#include <linux/dm-kcopyd.h>
#include <linux/types.h>

/*
 * Flags of a request.  The macros are casts of shifts, which bindgen can't
 * evaluate.
 */
static const u32 DMSNAP_REQ_OP_MASK = (__force u32)REQ_OP_MASK;
static const u32 DMSNAP_REQ_SYNC = (__force u32)REQ_SYNC;
static const u32 DMSNAP_REQ_META = (__force u32)REQ_META;
static const u32 DMSNAP_REQ_PRIO = (__force u32)REQ_PRIO;
static const u32 DMSNAP_REQ_IDLE = (__force u32)REQ_IDLE;
static const u32 DMSNAP_REQ_FUA = (__force u32)REQ_FUA;
static const u32 DMSNAP_REQ_PREFLUSH = (__force u32)REQ_PREFLUSH;
static const u32 DMSNAP_REQ_RAHEAD = (__force u32)REQ_RAHEAD;

/* How a device is opened. */
static const u32 DMSNAP_OPEN_READ = (__force u32)BLK_OPEN_READ;
static const u32 DMSNAP_OPEN_WRITE = (__force u32)BLK_OPEN_WRITE;

/* Bios. */
void dmsnap_bio_set_dev(struct bio *bio, struct block_device *bdev);
void dmsnap_bio_end(struct bio *bio, int errno);
void dmsnap_bio_requeue(struct bio *bio);
void dmsnap_bio_copy_to(struct bio *bio, struct page_list *list, unsigned int offset);

/* Pages. */
struct page *dmsnap_zero_page(void);

/* Allocations that do no I/O. */
unsigned int dmsnap_noio_save(void);
void dmsnap_noio_restore(unsigned int flags);

/* Workqueues. */
struct workqueue_struct *dmsnap_alloc_workqueue(const char *name);
void dmsnap_drain_workqueue(struct workqueue_struct *wq);
void dmsnap_flush_delayed_work(struct work_struct *work);
void dmsnap_synchronize_rcu_tasks(void);

/*
 * Exported, but declared only in a private header of device-mapper. The pair has
 * to be called in this order: the first returns with the device's suspend lock
 * held, the second drops it.
 */
void dm_internal_suspend_fast(struct mapped_device *md);
void dm_internal_resume_fast(struct mapped_device *md);

/* Block devices. */
bool dmsnap_bdev_read_only(struct block_device *bdev);
sector_t dmsnap_bdev_nr_sectors(struct block_device *bdev);
unsigned int dmsnap_bdev_logical_block_size(struct block_device *bdev);
unsigned int dmsnap_bdev_max_discard_sectors(struct block_device *bdev);

/* Module parameters that can be written while the module is loaded. */
int dmsnap_param_cow_threshold(void);
unsigned int dmsnap_param_no_space_timeout(void);

/* Module parameters that are set when the module is loaded. */
bool dmsnap_param_standard_names(void);

#endif /* DMSNAP_HELPERS_H */
