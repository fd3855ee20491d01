/* What a container engine asks when it looks for changes: for every file lstat (by nftw), llistxattr and
 * lgetxattr(security.capability), following no symlink. Prints how many entries it saw, the root included, and how
 * many regular files have capabilities. Any error but "there is none" ends it.
 *
 * reads.py builds and runs it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#define DESCRIPTORS 64
#define NAMES_MAX 65536 /* XATTR_LIST_MAX of linux/limits.h */

static long entries, capable;

static int has_none(int error) { return error == ENODATA || error == ENOTSUP; }

static int complain(const char *path)
{
    perror(path);
    return 1;
}

static int visit(const char *path, const struct stat *status, int type, struct FTW *at)
{
    static char names[NAMES_MAX], capability[64];

    (void)at;
    if (type == FTW_DNR || type == FTW_NS)
        return complain(path);
    entries++;
    if (llistxattr(path, names, sizeof names) < 0 && !has_none(errno))
        return complain(path);
    if (lgetxattr(path, "security.capability", capability, sizeof capability) >= 0)
        capable += S_ISREG(status->st_mode);
    else if (!has_none(errno))
        return complain(path);
    return 0;
}

int main(int count, char **arguments)
{
    if (count != 2 || nftw(arguments[1], visit, DESCRIPTORS, FTW_PHYS) != 0)
        return 1;
    printf("%ld %ld\n", entries, capable);
    return 0;
}
