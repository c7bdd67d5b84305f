// The kernel's side of a local loop: sockets, epoll, eventfd, as thin as can be. Every call answers
// a count or the negative error number; who decides what that means is the loop.

import CEpoll
import Glibc
import TollgateCore

enum LocalSystem {
  /// Nanoseconds that also count while the machine sleeps: leases end by this clock.
  static func bootNanoseconds() -> Int64 {
    var time = timespec()
    unsafe clock_gettime(CLOCK_BOOTTIME, &time)
    return Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec)
  }

  /// How many descriptors this process may have open.
  static var descriptorsMax: Int {
    var limit = rlimit()
    guard unsafe getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 else {
      return 1024
    }
    return Int(clamping: min(limit.rlim_cur, rlim_t(UInt32.max / 2)))
  }

  // Safe: the buffer is the caller's for the time of the call, and no more than its count is read.
  static func send(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer) -> Int {
    let sent = unsafe Glibc.send(
      descriptor, bytes.baseAddress, bytes.count, Int32(MSG_NOSIGNAL))
    return sent >= 0 ? sent : -Int(errno)
  }

  // Safe: likewise, and no more than its count is written.
  static func receive(_ descriptor: Int32, _ room: UnsafeMutableRawBufferPointer) -> Int {
    let received = unsafe recv(descriptor, room.baseAddress, room.count, 0)
    return received >= 0 ? received : -Int(errno)
  }

  static func close(_ descriptor: Int32) { _ = Glibc.close(descriptor) }

  /// The next connection, non-blocking; or the negative error number.
  static func accept(_ listener: Int32) -> Int32 {
    let descriptor = Glibc.accept(listener, nil, nil)
    guard descriptor >= 0 else { return -errno }
    prepare(descriptor)
    return descriptor
  }

  private static func prepare(_ descriptor: Int32) {
    _ = fcntl(descriptor, F_SETFL, O_NONBLOCK)
    _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC)
  }

  static func setNoDelay(_ descriptor: Int32) {
    setFlag(descriptor, Int32(IPPROTO_TCP), TCP_NODELAY)
  }

  private static func setFlag(_ descriptor: Int32, _ level: Int32, _ name: Int32) {
    var on: Int32 = 1
    _ = unsafe setsockopt(
      descriptor, level, name, &on, socklen_t(MemoryLayout<Int32>.size))
  }

  /// `struct ucred` of <sys/socket.h>, which the C module does not show.
  private struct PeerCredentials {
    var pid: Int32 = 0
    var uid: UInt32 = 0
    var gid: UInt32 = 0
  }

  /// The user at the other end of a Unix socket.
  static func peerUID(_ descriptor: Int32) -> UInt32? {
    var credentials = PeerCredentials()
    var length = socklen_t(MemoryLayout<PeerCredentials>.size)
    let status = unsafe getsockopt(descriptor, SOL_SOCKET, SO_PEERCRED, &credentials, &length)
    return status == 0 && length == MemoryLayout<PeerCredentials>.size ? credentials.uid : nil
  }

  // MARK: - Listening

  static let backlog: Int32 = 1024

  /// A listening socket at the path, or the negative error number.
  static func listen(unix path: String) -> Int32 {
    let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
    guard descriptor >= 0 else { return -errno }
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    let bytes = Array(path.utf8)
    guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else {
      close(descriptor)
      return -ENAMETOOLONG
    }
    unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: bytes) }
    let length = socklen_t(MemoryLayout<sockaddr_un>.size)
    let status = unsafe withUnsafePointer(to: &address) { pointer in
      unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        unsafe bind(descriptor, $0, length)
      }
    }
    return listen(descriptor, bound: status)
  }

  private static func listen(_ descriptor: Int32, bound: Int32) -> Int32 {
    guard bound == 0, Glibc.listen(descriptor, backlog) == 0 else {
      let error = errno
      close(descriptor)
      return -error
    }
    prepare(descriptor)
    return descriptor
  }

  /// A listening socket at the first address of the host that can be bound, or the negative error
  /// number.
  static func listen(host: String, port: Int) -> Int32 {
    var hints = unsafe addrinfo()
    unsafe hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
    unsafe hints.ai_flags = AI_PASSIVE
    var found: UnsafeMutablePointer<addrinfo>?
    guard unsafe getaddrinfo(host, "\(port)", &hints, &found) == 0 else { return -EADDRNOTAVAIL }
    defer { unsafe freeaddrinfo(found) }
    var result = -EADDRNOTAVAIL
    var next = unsafe found
    while let entry = unsafe next {
      let descriptor = unsafe socket(entry.pointee.ai_family, Int32(SOCK_STREAM.rawValue), 0)
      if descriptor >= 0 {
        setFlag(descriptor, SOL_SOCKET, SO_REUSEADDR)
        let status = unsafe bind(descriptor, entry.pointee.ai_addr, entry.pointee.ai_addrlen)
        result = listen(descriptor, bound: status)
        if result >= 0 { return result }
      } else {
        result = -errno
      }
      unsafe next = entry.pointee.ai_next
    }
    return result
  }
}

/// Which connection of a loop: its place, and how often the place was taken before. A message or an
/// event for a connection that is gone finds another number there.
struct ConnectionKey: Hashable, Sendable {
  var place: UInt32
  var taken: UInt32

  var number: UInt64 { UInt64(taken) << 32 | UInt64(place) }

  init(place: Int, taken: UInt32) {
    self.place = UInt32(place)
    self.taken = taken
  }

  init(number: UInt64) {
    place = UInt32(truncatingIfNeeded: number)
    taken = UInt32(truncatingIfNeeded: number >> 32)
  }
}

/// The number that wakes a loop: an eventfd, good for as long as this lives, whoever writes to it.
final class LoopBell: Sendable {
  let descriptor: Int32

  init() throws(ListenFailure) {
    descriptor = eventfd(0, Int32(EFD_NONBLOCK | EFD_CLOEXEC))
    guard descriptor >= 0 else {
      throw ListenFailure(description: "a local loop cannot start (errno \(errno))")
    }
  }

  deinit { LocalSystem.close(descriptor) }

  /// It is polled edge by edge, so nobody has to read it; it is full after 2^64 rings.
  func ring() {
    var one: UInt64 = 1
    _ = unsafe write(descriptor, &one, 8)
  }
}

/// epoll, level by level. Used on the loop's thread only.
// Safe: `events` has room for `eventsMax`, epoll is told so, and an index is checked against what
// the last wait filled.
@safe final class LoopPoller {
  struct Ready {
    var number: UInt64
    var isReadable: Bool
    var isWritable: Bool
    /// The other side is gone for good, or the socket is broken.
    var isBroken: Bool
  }

  private static let eventsMax = 256
  private let descriptor: Int32
  private let events: UnsafeMutableBufferPointer<epoll_event>
  private var filled = 0

  init() throws(ListenFailure) {
    descriptor = epoll_create1(Int32(EPOLL_CLOEXEC))
    guard descriptor >= 0 else {
      throw ListenFailure(description: "a local loop cannot start (errno \(errno))")
    }
    unsafe events = .allocate(capacity: Self.eventsMax)
    unsafe events.initialize(repeating: epoll_event())
  }

  deinit {
    LocalSystem.close(descriptor)
    unsafe events.deallocate()
  }

  func add(_ socket: Int32, number: UInt64) -> Bool {
    control(EPOLL_CTL_ADD, socket, number, EPOLLIN.rawValue)
  }

  func add(_ bell: LoopBell, number: UInt64) -> Bool {
    control(EPOLL_CTL_ADD, bell.descriptor, number, EPOLLIN.rawValue | EPOLLET.rawValue)
  }

  func watch(_ socket: Int32, number: UInt64, readable: Bool, writable: Bool) {
    _ = control(
      EPOLL_CTL_MOD, socket, number,
      (readable ? EPOLLIN.rawValue : 0) | (writable ? EPOLLOUT.rawValue : 0))
  }

  func remove(_ socket: Int32) { _ = control(EPOLL_CTL_DEL, socket, 0, 0) }

  private func control(_ operation: Int32, _ socket: Int32, _ number: UInt64, _ mask: UInt32)
    -> Bool
  {
    var event = unsafe epoll_event()
    unsafe event.events = mask
    unsafe event.data.u64 = number
    return unsafe epoll_ctl(descriptor, operation, socket, &event) == 0
  }

  /// Waits so long at most, without end where it is nil; answers how many are ready.
  func wait(milliseconds: Int32?) -> Int {
    let ready = unsafe epoll_wait(
      descriptor, events.baseAddress, Int32(Self.eventsMax), milliseconds ?? -1)
    // The one error that can be is an interruption.
    filled = max(0, Int(ready))
    return filled
  }

  subscript(index: Int) -> Ready {
    precondition(index >= 0 && index < filled)
    let event = unsafe events[index]
    let mask = unsafe event.events
    return unsafe Ready(
      number: event.data.u64, isReadable: mask & EPOLLIN.rawValue != 0,
      isWritable: mask & EPOLLOUT.rawValue != 0,
      isBroken: mask & (EPOLLERR.rawValue | EPOLLHUP.rawValue) != 0)
  }
}
