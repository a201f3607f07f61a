/* Has a stock Memcached answer `config get cluster`, in text and binary (opcode 0x60), as ElastiCache's does: preloaded into it.
 *
 * Memcached itself says where a command begins, so no stream is parsed twice. In text, it looks with memchr(3) for the end of every
 * command line, whole as it is by then, and of nothing else; in binary, frames say how long they are. A `config get cluster` that
 * begins there is turned, in Memcached's own buffer and at its own length, into a question for a key that nobody can know. Memcached
 * answers it in its turn, pipelined or not: NOT FOUND, with the key. Where that answer is about to be sent, the list goes instead.
 *
 * The list is on a board: the file `discovery.board` in the working directory, mapped when the process starts, before it gives up
 * the rights to open it. Its writer fills the slot that is not in use, then counts `generation` up: a reader sees one or the other.
 * Without a board all of this does nothing.
 *
 * Commands by which any client could change the server for all others are withheld: a line that begins with one is spoilt in the
 * same place, so that Memcached answers ERROR.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    TEXT_BYTES = 16376, SIZE_DIGITS = 8,                  /* of a slot of the board */
    FDS = 1 << 20,                                        /* fs.nr_open is no higher by default */
    HEADER = 24, KEY_AT = HEADER, BINARY_KEY = 7,         /* strlen("cluster") */
    SHORTEST_LINE = 12, LONGEST_LINE = 60,     /* "config get x"; "config get cluster" and room for spaces */
    TEXT_KEY = 13, TEXT_MARK = 4 + TEXT_KEY,              /* "md KEY k" is as long as "config get cluster"; "NF kKEY" answers */
};

struct slot { char size[SIZE_DIGITS]; char text[TEXT_BYTES]; };
struct board { uint64_t generation; struct slot slots[2]; };

/* What a connection speaks, and where its binary frames stand. Only the worker that has the connection touches it. */
struct talk {
    enum { NEW, TEXT, BINARY } speaks;
    unsigned char header[HEADER];
    unsigned seen;       /* bytes of the header */
    uint64_t left;       /* bytes of the body */
    int asks;            /* the frame is ours: its key is being replaced */
};

/* An answer that did not go out whole. */
struct unsent { size_t size, sent; char bytes[]; };

static struct board *board;
static struct talk *talks;
static struct unsent **unsents;
static char text_key[TEXT_KEY], binary_key[BINARY_KEY];

static void *plain_memchr(const void *s, int c, size_t n)
{
    for (const unsigned char *p = s; n--; p++)
        if (*p == (unsigned char)c)
            return (void *)p;
    return NULL;
}

/* Until the constructor has run, others' constructors may already call. */
static void *(*real_memchr)(const void *, int, size_t) = plain_memchr;
static ssize_t (*real_read)(int, void *, size_t);
static ssize_t (*real_sendmsg)(int, const struct msghdr *, int);
static int (*real_close)(int);

__attribute__((constructor)) static void begin(void)
{
    real_read = (ssize_t (*)(int, void *, size_t))dlsym(RTLD_NEXT, "read");
    real_sendmsg = (ssize_t (*)(int, const struct msghdr *, int))dlsym(RTLD_NEXT, "sendmsg");
    real_close = (int (*)(int))dlsym(RTLD_NEXT, "close");
    real_memchr = (void *(*)(const void *, int, size_t))dlsym(RTLD_NEXT, "memchr");
    int fd = open("discovery.board", O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0)
        return;
    if (fstat(fd, &st) == 0 && st.st_size == sizeof *board) {
        void *map = mmap(NULL, sizeof *board, PROT_READ, MAP_SHARED, fd, 0);
        talks = calloc(FDS, sizeof *talks); /* only what is used of it takes up memory */
        unsents = calloc(FDS, sizeof *unsents);
        if (map != MAP_FAILED && talks != NULL && unsents != NULL &&
            getrandom(text_key, sizeof text_key, 0) == sizeof text_key &&
            getrandom(binary_key, sizeof binary_key, 0) == sizeof binary_key) {
            for (int i = 0; i < TEXT_KEY; i++)
                text_key[i] = 'a' + (text_key[i] & 15);
            board = map;
        }
    }
    real_close(fd);
}

static size_t list(char *out)
{
    for (;;) {
        uint64_t generation = __atomic_load_n(&board->generation, __ATOMIC_ACQUIRE);
        const struct slot *slot = &board->slots[generation & 1];
        size_t size = 0;
        for (int i = 0; i < SIZE_DIGITS; i++)
            size = size * 10 + (size_t)(slot->size[i] - '0') % 10;
        if (size > TEXT_BYTES)
            size = 0;
        memcpy(out, slot->text, size);
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        if (__atomic_load_n(&board->generation, __ATOMIC_RELAXED) == generation)
            return size;
    }
}

/* --- what comes in */

static const char *word(const char *at, const char *end, const char *expected)
{
    size_t size = strlen(expected);
    if ((size_t)(end - at) < size || memcmp(at, expected, size) != 0)
        return NULL;
    at += size;
    if (at < end && *at != ' ')
        return NULL;
    while (at < end && *at == ' ')
        at++;
    return at;
}

/* A command line begins here. Another of the same length takes the place of ours. */
static void line(char *start, size_t n)
{
    char *end = real_memchr(start, '\n', n);
    if (end == NULL)
        return;
    if (end > start && end[-1] == '\r')
        end--;
    size_t size = (size_t)(end - start);
    const char *at = word(start, end, "config");
    if (at == NULL || (at = word(at, end, "get")) == NULL || size < SHORTEST_LINE || size > LONGEST_LINE)
        return;
    const char *after = at;
    while (after < end && *after != ' ')
        after++;
    size_t name = (size_t)(after - at);
    while (after < end && *after == ' ')
        after++;
    if (name == 0 || after != end)
        return; /* no name, or several: an ERROR */
    int ours = name == 7 && memcmp(at, "cluster", 7) == 0;
    /* A longer line gets a longer key. There is no other configuration than `cluster`: that is a miss, and answered by END. */
    size_t head = ours ? 3 : 4, tail = ours ? 2 : 0, key = size - head - tail;
    memcpy(start, ours ? "md " : "get ", head);
    memset(start + head, 'z', key);
    memcpy(start + head, text_key, ours ? TEXT_KEY : 8);
    memcpy(start + head + key, " k", tail);
}

/* A command line begins here, with one of these words, or not. */
static void withhold(char *start, size_t n)
{
    static const char *const words[] = {"slabs", "lru", "verbosity"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (*start == *words[i] && word(start, start + n, words[i]) != NULL && real_memchr(start, '\n', n) != NULL)
            memset(start, 'z', strlen(words[i]));
}

void *memchr(const void *s, int c, size_t n)
{
    if (c == '\n' && n > 4 && board != NULL) {
        char first = *(const char *)s;
        if (first == 'c' && n > SHORTEST_LINE && memcmp(s, "config ", 7) == 0)
            line((char *)s, n);
        else if (first == 's' || first == 'l' || first == 'v')
            withhold((char *)s, n);
    }
    return real_memchr(s, c, n);
}

/* The frames of one connection, however they are cut. Ours becomes GETK of a key that nobody can know. */
static void frames(struct talk *t, unsigned char *at, size_t n)
{
    const unsigned char *start = at;
    while (n > 0) {
        if (t->left > 0) {
            size_t size = n < t->left ? n : (size_t)t->left;
            if (t->asks)
                memcpy(at, binary_key + BINARY_KEY - t->left, size);
            t->left -= size;
            at += size;
            n -= size;
            continue;
        }
        t->header[t->seen] = *at;
        if (t->seen == 1 && *at == 0x60)
            *at = 0x0c;
        t->seen++;
        at++;
        n--;
        if (t->seen == HEADER) {
            const unsigned char *h = t->header;
            t->left = (uint64_t)h[8] << 24 | h[9] << 16 | h[10] << 8 | h[11];
            t->asks = h[1] == 0x60 && h[2] == 0 && h[3] == BINARY_KEY && h[4] == 0 && t->left == BINARY_KEY;
            t->seen = 0;
            if (h[1] == 0x60 && !t->asks && at - start >= HEADER - 1)
                at[1 - HEADER] = 0x60; /* it asks for something else: Memcached refuses it */
        }
    }
}

ssize_t read(int fd, void *buffer, size_t n)
{
    ssize_t got = real_read(fd, buffer, n);
    if (board == NULL || got <= 0 || fd < 0 || fd >= FDS)
        return got;
    struct talk *t = &talks[fd];
    if (t->speaks == NEW)
        t->speaks = *(unsigned char *)buffer == 0x80 ? BINARY : TEXT;
    if (t->speaks == BINARY)
        frames(t, buffer, (size_t)got);
    return got;
}

/* --- what goes out */

static int text_mark(const struct iovec *v)
{
    return v->iov_len >= TEXT_MARK + 2 && v->iov_len <= LONGEST_LINE + 2 && memcmp(v->iov_base, "NF k", 4) == 0 &&
           memcmp((char *)v->iov_base + 4, text_key, TEXT_KEY) == 0;
}

static int binary_mark(const struct iovec *v, size_t n)
{
    const unsigned char *h = v->iov_base, *key;
    if (v->iov_len == HEADER && n > 1 && v[1].iov_len == BINARY_KEY)
        key = v[1].iov_base;
    else if (v->iov_len == HEADER + BINARY_KEY)
        key = h + HEADER;
    else
        return 0;
    return h[0] == 0x81 && h[1] == 0x0c && memcmp(key, binary_key, BINARY_KEY) == 0;
}

static struct unsent *answer(const struct iovec *v, int in_text)
{
    struct unsent *u = malloc(sizeof *u + TEXT_BYTES + 64);
    if (u == NULL)
        return NULL;
    u->sent = 0;
    char *text = malloc(TEXT_BYTES);
    if (text == NULL) {
        free(u);
        return NULL;
    }
    size_t size = list(text);
    if (in_text) {
        size_t head = (size_t)sprintf(u->bytes, "CONFIG cluster 0 %zu\r\n", size);
        memcpy(u->bytes + head, text, size);
        memcpy(u->bytes + head + size, "\r\nEND\r\n", 7);
        u->size = head + size + 7;
    } else {
        unsigned char *h = (unsigned char *)u->bytes;
        size_t body = 4 + size;
        memset(h, 0, HEADER + 4);
        h[0] = 0x81;
        h[1] = 0x60;
        h[4] = 4; /* of extras: the flags, 0 */
        h[8] = (unsigned char)(body >> 24), h[9] = (unsigned char)(body >> 16);
        h[10] = (unsigned char)(body >> 8), h[11] = (unsigned char)body;
        memcpy(h + 12, (unsigned char *)v->iov_base + 12, 4); /* opaque */
        memcpy(h + HEADER + 4, text, size);
        u->size = HEADER + body;
    }
    free(text);
    return u;
}

/* The first of `m` is the mark. It counts as sent when its answer is; until then, the caller is told to wait. */
static ssize_t send_answer(int fd, const struct msghdr *m, int flags)
{
    const struct iovec *v = m->msg_iov;
    int in_text = text_mark(v);
    size_t mark = v->iov_len == HEADER ? HEADER + BINARY_KEY : v->iov_len;
    struct unsent *u = unsents[fd];
    if (u == NULL && (u = unsents[fd] = answer(v, in_text)) == NULL) {
        errno = ENOMEM;
        return -1;
    }
    struct iovec rest = {u->bytes + u->sent, u->size - u->sent};
    struct msghdr part = {.msg_iov = &rest, .msg_iovlen = 1};
    ssize_t sent = real_sendmsg(fd, &part, flags);
    if (sent < 0)
        return -1;
    u->sent += (size_t)sent;
    if (u->sent < u->size) {
        errno = EAGAIN;
        return -1;
    }
    free(u);
    unsents[fd] = NULL;
    return (ssize_t)mark;
}

ssize_t sendmsg(int fd, const struct msghdr *m, int flags)
{
    if (board == NULL || fd < 0 || fd >= FDS)
        return real_sendmsg(fd, m, flags);
    for (size_t i = 0; i < m->msg_iovlen; i++) {
        if (!text_mark(&m->msg_iov[i]) && !binary_mark(&m->msg_iov[i], m->msg_iovlen - i))
            continue;
        if (i == 0)
            return send_answer(fd, m, flags);
        struct msghdr before = *m; /* a short write: the caller comes again */
        before.msg_iovlen = i;
        return real_sendmsg(fd, &before, flags);
    }
    return real_sendmsg(fd, m, flags);
}

int close(int fd)
{
    if (board != NULL && fd >= 0 && fd < FDS) {
        free(unsents[fd]);
        unsents[fd] = NULL;
        memset(&talks[fd], 0, sizeof talks[fd]);
    }
    return real_close(fd);
}
