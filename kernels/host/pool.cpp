// Threads that sleep: workers wait on a condition, never on a spinning flag, so that they cost a busy machine nothing.
//
// gg_parallel(count, task, context) calls task(context, i) once for every i < count, on the calling thread and on those
// workers that wake up in time; nobody waits for a worker that has not begun. A call from a second thread, or from a
// task, runs alone on its own thread. Which thread does a task never decides a result.
#include <pthread.h>
#include <time.h>

typedef void (*Task)(void* context, long long i);

static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work = PTHREAD_COND_INITIALIZER, done = PTHREAD_COND_INITIALIZER;
static struct { Task task; void* context; long long count, next; } job; // next: taken by atomic addition
static int workers, wanted = 1, inside;    // threads there are; threads to use, the caller's own among them; at the job
static bool open, busy;                    // whether workers may join; whether a call is under way

static void drain() {
    for (long long i; (i = __atomic_fetch_add(&job.next, 1, __ATOMIC_RELAXED)) < job.count;) job.task(job.context, i);
}

static void* serve(void* number) {
    pthread_mutex_lock(&guard);
    for (;;) {
        while (!(open && (long)number < wanted - 1)) pthread_cond_wait(&work, &guard);
        inside++;
        pthread_mutex_unlock(&guard);
        drain();
        pthread_mutex_lock(&guard);
        open = false; // there is nothing left to take
        if (--inside == 0) pthread_cond_signal(&done);
    }
    return nullptr;
}

// In a forked child there are no workers.
static void forget() {
    pthread_mutex_init(&guard, nullptr), pthread_cond_init(&work, nullptr), pthread_cond_init(&done, nullptr);
    workers = inside = 0, open = busy = false;
}

// Seconds since some moment.
extern "C" __attribute__((visibility("default"))) double gg_clock() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
}

extern "C" __attribute__((visibility("default"))) void gg_threads(int n) {
    static bool watching;
    pthread_mutex_lock(&guard);
    wanted = n;
    if (!watching) watching = pthread_atfork(nullptr, nullptr, forget) == 0;
    pthread_mutex_unlock(&guard);
}

extern "C" __attribute__((visibility("default"))) void gg_parallel(long long count, Task task, void* context) {
    pthread_mutex_lock(&guard);
    bool alone = busy || wanted < 2 || count < 2;
    if (!alone) {
        busy = true;
        for (pthread_t thread; workers < wanted - 1; workers++) {
            if (pthread_create(&thread, nullptr, serve, (void*)(long)workers)) break;
            pthread_detach(thread);
        }
        job = {task, context, count, 0};
        open = true;
        pthread_cond_broadcast(&work);
    }
    pthread_mutex_unlock(&guard);
    if (alone) {
        for (long long i = 0; i < count; i++) task(context, i);
        return;
    }
    drain();
    pthread_mutex_lock(&guard);
    open = false;
    while (inside) pthread_cond_wait(&done, &guard);
    busy = false;
    pthread_mutex_unlock(&guard);
}
