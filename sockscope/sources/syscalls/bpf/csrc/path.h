/* The path of an open file, from its directory entries. bpf_d_path is not allowed in these programs. */
#ifndef SOCKSCOPE_PATH_H
#define SOCKSCOPE_PATH_H

#include "copy.h"

#define NAME_CAP 255
#define PATH_STEPS 32 /* names and mount points */
/* Read one field through a kernel pointer; false: it cannot be read. */
#define READ(to, access) (!bpf_probe_read_kernel(&(to), sizeof(to), &(access)))

/* A PATH section: from the root of the file's mount namespace. Returns 0: it could not be found.
 *
 * Built backwards behind the blob, where room() leaves space. Source: fs/d_path.c prepend_path. */
GLOBAL int put_file_path(struct work *w, u64 mount_at, u64 dentry_at)
{
    struct vfsmount *mount = (void *)mount_at;
    struct dentry *entry = (void *)dentry_at, *parent, *root;
    struct mount *m, *above;
    u32 at = PATH_CAP, whole = 0;
    if (!w)
        return 0;
    u8 *text = w->blob + LARGE_BLOB;
    for (u32 i = 0; i < PATH_STEPS; i++) {
        u32 bytes;
        const u8 *name;
        if (!READ(root, mount->mnt_root) || !READ(parent, entry->d_parent))
            return 0;
        if (entry == root) {
            m = (void *)((u64)mount - __builtin_preserve_field_info(((struct mount *)0)->mnt, 0));
            if (!READ(above, m->mnt_parent) || !READ(entry, m->mnt_mountpoint))
                return 0;
            if (above == m) {
                whole = 1;
                break;
            }
            mount = &above->mnt;
            continue;
        }
        if (entry == parent) {
            whole = 1;
            break;
        }
        if (!READ(bytes, entry->d_name.len) || !READ(name, entry->d_name.name) || bytes > NAME_CAP || at <= bytes)
            return 0;
        /* The masks change nothing; they are for the verifier. */
        at = (at - bytes) & (PATH_CAP - 1);
        if (bpf_probe_read_kernel(text + at, bytes, name))
            return 0;
        at = (at - 1) & (PATH_CAP - 1);
        text[at] = '/';
        entry = parent;
    }
    u32 used = PATH_CAP - at;
    u8 *data = room(w, PATH_CAP);
    if (!whole || !data || at >= PATH_CAP || used > PATH_CAP)
        return 0;
    bpf_probe_read_kernel(data, used, text + at);
    put_header(w, data, SEC_PATH, 0, used);
    return 1;
}

#endif
