// epoll, as thin as it can be: readiness by number, a wait to the microsecond.

internal import CEpoll
internal import Glibc

@safe final class Poller {
  struct Ready {
    var token: Int
    var readable: Bool
    var writable: Bool
  }

  private static let eventsMax = 256
  private let descriptor: Int32
  private let events: UnsafeMutableBufferPointer<epoll_event>

  init() throws {
    descriptor = epoll_create1(0)
    guard descriptor >= 0 else { throw BenchError.system("epoll_create1", errno) }
    unsafe events = .allocate(capacity: Self.eventsMax)
    unsafe events.initialize(repeating: epoll_event())
  }

  deinit {
    close(descriptor)
    unsafe events.deallocate()
  }

  func add(_ socket: Int32, token: Int) throws {
    // A socket that is still connecting reports itself as writable once.
    try control(EPOLL_CTL_ADD, socket, token, EPOLLIN.rawValue | EPOLLOUT.rawValue)
  }

  func watch(_ socket: Int32, token: Int, writable: Bool) throws {
    try control(
      EPOLL_CTL_MOD, socket, token, EPOLLIN.rawValue | (writable ? EPOLLOUT.rawValue : 0))
  }

  private func control(_ operation: Int32, _ socket: Int32, _ token: Int, _ mask: UInt32) throws {
    var event = unsafe epoll_event()
    unsafe event.events = mask
    unsafe event.data.u64 = UInt64(token)
    guard unsafe epoll_ctl(descriptor, operation, socket, &event) == 0 else {
      throw BenchError.system("epoll_ctl", errno)
    }
  }

  /// Waits at most `nanoseconds`; answers how many are ready.
  func wait(nanoseconds: Int64) throws -> Int {
    var limit = timespec(
      tv_sec: Int(max(0, nanoseconds) / 1_000_000_000),
      tv_nsec: Int(max(0, nanoseconds) % 1_000_000_000))
    let n = unsafe epoll_pwait2(
      descriptor, events.baseAddress, Int32(Self.eventsMax), &limit, nil)
    if n >= 0 { return Int(n) }
    guard errno == EINTR else { throw BenchError.system("epoll_pwait2", errno) }
    return 0
  }

  subscript(index: Int) -> Ready {
    precondition(index >= 0 && index < Self.eventsMax)
    let event = unsafe events[index]
    let failed = unsafe event.events & (EPOLLERR.rawValue | EPOLLHUP.rawValue) != 0
    return unsafe Ready(
      token: Int(event.data.u64), readable: failed || event.events & EPOLLIN.rawValue != 0,
      writable: failed || event.events & EPOLLOUT.rawValue != 0)
  }
}
