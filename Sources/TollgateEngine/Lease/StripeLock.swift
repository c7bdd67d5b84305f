// One lock per stripe. A plain system mutex: an owner that is not running costs the others nothing,
// and the thread sanitizer understands it (it does not see a contended `Synchronization` mutex
// change hands). It lies beside nothing else that is written often.

#if canImport(Glibc)
  internal import Glibc
#else
  internal import Darwin
#endif

@safe struct StripeLock: ~Copyable {
  private let mutex: UnsafeMutablePointer<pthread_mutex_t>

  init() {
    unsafe mutex = .allocate(capacity: 1)
    unsafe mutex.initialize(to: pthread_mutex_t())
    let failed = unsafe pthread_mutex_init(mutex, nil)
    precondition(failed == 0)
  }

  deinit {
    _ = unsafe pthread_mutex_destroy(mutex)
    unsafe mutex.deallocate()
  }

  @inline(__always)
  func lock() { _ = unsafe pthread_mutex_lock(mutex) }

  @inline(__always)
  func unlock() { _ = unsafe pthread_mutex_unlock(mutex) }
}
