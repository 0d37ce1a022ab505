/* A libnvidia-ml.so.1 that says what the file `state` beside it says, read anew at every call.
 *
 * Lines of fields, parted by `|`; names are in hexadecimal, so that they may hold any byte:
 *   driver|version=550.54.15|cuda=12040
 *   gpu|uuid=GPU-…|name=…|total=…|free=…|used=…|util=…|ecc=…|pids=1,2|mig=1|fault=15|gone=1|recovery=1|minor=0
 *   mig|uuid=MIG-…|parent=0|number=0|…          (parent: which `gpu` line)
 *   xid|gpu=0|code=79|instance=1
 *   hang|function=…    fail|function=…|code=…    crash|function=…
 * With OLD_DRIVER it lacks what drivers of some years ago lack.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <libgen.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MOST 64
enum { SUCCESS = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, SMALL = 7, NO_MORE = 10 };

typedef unsigned long long u64;
typedef struct {
    char uuid[128], name[128], pids[128];
    u64 total, free, used;
    long util, ecc, mig, fault, gone, parent, number, recovery, minor;
} device_t;
typedef struct { long gpu, code, instance; } xid_t;
typedef struct { char kind[8], function[64]; long code; } trouble_t;
typedef struct { u64 total, free, used; } memory_t;
typedef struct { unsigned version; u64 total, reserved, free, used; } memory_v2_t;
typedef struct { unsigned gpu, memory; } utilization_t;
typedef struct { unsigned pid; u64 used; unsigned gpu_instance, compute_instance; } process_t;
typedef struct { unsigned field, scope; long long at, latency; int type, code; u64 value; } field_t;
typedef struct { void *device; u64 type, data; unsigned gpu_instance, compute_instance; } event_t;

static device_t devices[MOST];
static xid_t xids[MOST];
static trouble_t troubles[MOST];
static int device_count, xid_count, trouble_count;
static char version[64];
static long cuda;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void copy_text(char *target, size_t size, const char *text) { snprintf(target, size, "%s", text); }

static void copy_hex(char *target, size_t size, const char *text) {
    size_t at = 0;
    unsigned byte;
    for (; at + 1 < size && sscanf(text, "%2x", &byte) == 1; text += 2) target[at++] = (char)byte;
    target[at] = 0;
}

static void read_field(const char *key, const char *value, device_t *d, xid_t *x, trouble_t *t) {
    long number = atol(value);
    if (!strcmp(key, "version")) copy_text(version, sizeof version, value);
    else if (!strcmp(key, "cuda")) cuda = number;
    else if (!strcmp(key, "uuid")) copy_text(d->uuid, sizeof d->uuid, value);
    else if (!strcmp(key, "name")) copy_hex(d->name, sizeof d->name, value);
    else if (!strcmp(key, "pids")) copy_text(d->pids, sizeof d->pids, value);
    else if (!strcmp(key, "total")) d->total = strtoull(value, NULL, 10);
    else if (!strcmp(key, "free")) d->free = strtoull(value, NULL, 10);
    else if (!strcmp(key, "used")) d->used = strtoull(value, NULL, 10);
    else if (!strcmp(key, "util")) d->util = number;
    else if (!strcmp(key, "ecc")) d->ecc = number;
    else if (!strcmp(key, "mig")) d->mig = number;
    else if (!strcmp(key, "fault")) d->fault = number;
    else if (!strcmp(key, "gone")) d->gone = number;
    else if (!strcmp(key, "parent")) d->parent = number;
    else if (!strcmp(key, "number")) d->number = number;
    else if (!strcmp(key, "minor")) d->minor = number;
    else if (!strcmp(key, "recovery")) d->recovery = number;
    else if (!strcmp(key, "gpu")) x->gpu = number;
    else if (!strcmp(key, "instance")) x->instance = number;
    else if (!strcmp(key, "function")) copy_text(t->function, sizeof t->function, value);
    else if (!strcmp(key, "code")) x->code = t->code = number;
}

static void read_line(char *line) {
    device_t d = {.util = -1, .ecc = -1, .parent = -1, .minor = -1};
    xid_t x = {.instance = -1};
    trouble_t t = {.code = 0};
    char *rest, *kind = strtok_r(line, "|\n", &rest), *field;
    if (kind == NULL) return;
    while ((field = strtok_r(NULL, "|\n", &rest))) {
        char *equals = strchr(field, '=');
        *equals = 0;
        read_field(field, equals + 1, &d, &x, &t);
    }
    if (!strcmp(kind, "gpu") || !strcmp(kind, "mig")) devices[device_count++] = d;
    else if (!strcmp(kind, "xid")) xids[xid_count++] = x;
    else if (strcmp(kind, "driver")) {
        copy_text(t.kind, sizeof t.kind, kind);
        troubles[trouble_count++] = t;
    }
}

static FILE *open_beside(const char *name, const char *mode) {
    Dl_info here;
    char library[1024], path[2048];
    dladdr((void *)open_beside, &here);
    copy_text(library, sizeof library, here.dli_fname);
    snprintf(path, sizeof path, "%s/%s", dirname(library), name);
    return fopen(path, mode);
}

static void load(void) {
    char line[1024];
    FILE *file = open_beside("state", "r");
    if (file == NULL) return;
    device_count = xid_count = trouble_count = 0;
    while (fgets(line, sizeof line, file)) read_line(line);
    fclose(file);
}

/* Every call begins here: what the file says of the function, else of the device. */
static int enter(const char *function, const device_t *device) {
    trouble_t found = {.kind = ""};
    pthread_mutex_lock(&lock);
    load();
    for (int i = 0; i < trouble_count; i++)
        if (!strcmp(troubles[i].function, function)) found = troubles[i];
    pthread_mutex_unlock(&lock);
    if (!strcmp(found.kind, "hang")) {
        fclose(open_beside("hangs", "w"));
        for (;;) pause();
    }
    if (!strcmp(found.kind, "crash")) raise(SIGSEGV);
    if (!strcmp(found.kind, "fail")) return (int)found.code;
    return device ? (int)device->fault : SUCCESS;
}

#define ENTER(device) do { int code = enter(__func__, device); if (code) return code; } while (0)

static device_t *find(long parent, long number) {
    for (int i = 0; i < device_count; i++)
        if (!devices[i].gone && devices[i].parent == parent && (parent < 0 || devices[i].number == number))
            if (parent >= 0 || number-- == 0) return &devices[i];
    return NULL;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; ENTER(NULL); return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { ENTER(NULL); copy_text(text, size, version); return SUCCESS; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    ENTER(NULL);
    for (*count = 0; find(-1, *count); ++*count);
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t **device) {
    ENTER(NULL);
    return (*device = find(-1, index)) ? SUCCESS : INVALID;
}

int nvmlDeviceGetUUID(device_t *d, char *text, unsigned size) { ENTER(d); copy_text(text, size, d->uuid); return SUCCESS; }
int nvmlDeviceGetName(device_t *d, char *text, unsigned size) { ENTER(d); copy_text(text, size, d->name); return SUCCESS; }

int nvmlDeviceGetMinorNumber(device_t *d, unsigned *minor) {
    ENTER(d);
    if (d->minor < 0 || d->parent >= 0) return NOT_SUPPORTED;
    *minor = (unsigned)d->minor;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(device_t *d, memory_t *memory) {
    ENTER(d);
    *memory = (memory_t){d->total, d->free, d->total - d->free};
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(device_t *d, utilization_t *use) {
    ENTER(d);
    if (d->util < 0) return NOT_SUPPORTED;
    *use = (utilization_t){(unsigned)d->util, 0};
    return SUCCESS;
}

int nvmlDeviceGetTotalEccErrors(device_t *d, int kind, int counter, u64 *count) {
    ENTER(d);
    if (d->ecc < 0 || d->parent >= 0) return NOT_SUPPORTED;
    *count = kind == 1 && counter == 0 ? (u64)d->ecc : 0;
    return SUCCESS;
}

int nvmlEventSetCreate(void **set) { ENTER(NULL); *set = &lock; return SUCCESS; }
int nvmlDeviceRegisterEvents(device_t *d, u64 types, void *set) { (void)types; (void)set; ENTER(d); return SUCCESS; }

#ifndef OLD_DRIVER
int nvmlSystemGetCudaDriverVersion(int *number) { ENTER(NULL); *number = (int)cuda; return SUCCESS; }

int nvmlDeviceGetMemoryInfo_v2(device_t *d, memory_v2_t *memory) {
    ENTER(d);
    *memory = (memory_v2_t){memory->version, d->total, d->total - d->free - d->used, d->free, d->used};
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(device_t *d, unsigned *count, process_t *processes) {
    ENTER(d);
    char text[sizeof d->pids], *rest = NULL, *word;
    unsigned room = processes ? *count : 0, found = 0;
    copy_text(text, sizeof text, d->pids);
    for (word = strtok_r(text, ",", &rest); word; word = strtok_r(NULL, ",", &rest), found++)
        if (found < room) processes[found] = (process_t){.pid = (unsigned)atol(word)};
    *count = found;
    return found > room ? SMALL : SUCCESS;
}

int nvmlDeviceGetMigMode(device_t *d, unsigned *now, unsigned *pending) {
    ENTER(d);
    if (d->mig < 0 || d->parent >= 0) return NOT_SUPPORTED;
    *now = *pending = (unsigned)d->mig;
    return SUCCESS;
}

int nvmlDeviceGetFieldValues(device_t *d, int count, field_t *fields) {
    ENTER(d);
    for (int i = 0; i < count; i++) {
        fields[i].code = fields[i].field == 230 ? SUCCESS : NOT_SUPPORTED;
        fields[i].value = (u64)d->recovery;
    }
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(device_t *d, unsigned *count) { (void)d; ENTER(NULL); *count = 7; return SUCCESS; }

int nvmlDeviceGetMigDeviceHandleByIndex(device_t *d, unsigned index, device_t **instance) {
    ENTER(NULL);
    return (*instance = find(d - devices, index)) ? SUCCESS : NOT_FOUND;
}

int nvmlDeviceGetGpuInstanceId(device_t *d, unsigned *id) { ENTER(NULL); *id = (unsigned)d->number; return SUCCESS; }
int nvmlDeviceGetComputeInstanceId(device_t *d, unsigned *id) { (void)d; ENTER(NULL); *id = 0; return SUCCESS; }

static int xids_told;

int nvmlEventSetWait_v2(void *set, event_t *event, unsigned milliseconds) {
    (void)set; (void)milliseconds;
    ENTER(NULL);
    if (xids_told >= xid_count) return NO_MORE;
    xid_t xid = xids[xids_told++];
    unsigned instance = xid.instance < 0 ? 0xFFFFFFFFu : (unsigned)xid.instance;
    *event = (event_t){&devices[xid.gpu], 8, (u64)xid.code, instance, 0xFFFFFFFFu};
    return SUCCESS;
}
#endif
