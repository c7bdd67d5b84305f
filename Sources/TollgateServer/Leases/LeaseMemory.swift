// The memory in which a sidecar notes what it lets through from leases: a mapped file, so that a
// killed process leaves it to its next incarnation, or plain memory where no file is configured.
// What stands in it is the engine's matter; here it is found, locked, made as large as it must be,
// and kept mapped as long as this object lives.
//
// The file is whole before it is mapped (`posix_fallocate`): a store into a hole of a full disk
// would end the process. One that is not as long as it should be keeps its length where it holds
// something; any other, such as one that a full disk cut short, is made as long. It is locked: two
// sidecars in one file would settle each other's units. It survives the process, not the host: it
// is never synced, and its cost is that of memory. What an earlier start of the host left in it is
// not read (`LeaseRegion` says why).

import Glibc
import TollgateEngine

// Safe: the region's address and size never change; what is in it is guarded by whoever partitions
// it (each stripe of the lease table has a part of its own, under its lock).
@safe final class LeaseMemory: @unchecked Sendable {
  struct Failure: Error, CustomStringConvertible {
    let description: String
  }

  /// Makes a file so long, all of it (posix_fallocate(3)), replaceable so that a test can fill the
  /// disk: descriptor, bytes, errno.
  typealias Allocate = (Int32, Int) -> Int32

  /// Zeros where it is new. Not to be touched after this object is gone.
  let region: UnsafeMutableRawBufferPointer
  /// What an earlier incarnation wrote may stand in it.
  let isRecovered: Bool
  /// −1: plain memory.
  private let descriptor: Int32

  /// Plain memory: pages are taken as they are first written.
  init(bytes: Int) throws(Failure) {
    descriptor = -1
    isRecovered = false
    unsafe region = try Self.map(bytes, -1, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, "memory")
  }

  /// - Parameters:
  ///   - path: of the file, made where there is none, owner-only.
  ///   - bytes: of a file that is begun anew.
  init(
    path: String, bytes: Int, allocate: Allocate = LeaseMemory.systemAllocate
  ) throws(Failure) {
    let descriptor = unsafe open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
    guard descriptor >= 0 else {
      throw Failure(description: "\(path): cannot be opened (errno \(errno))")
    }
    do throws(Failure) {
      guard flock(descriptor, LOCK_EX | LOCK_NB) == 0 else {
        throw Failure(description: "\(path): another sidecar has it")
      }
      var status = stat()
      guard unsafe fstat(descriptor, &status) == 0, status.st_mode & S_IFMT == S_IFREG else {
        throw Failure(description: "\(path): is not a file")
      }
      let size = Int(status.st_size)
      let length = Self.held(descriptor, of: size) ?? bytes
      guard size <= length || ftruncate(descriptor, off_t(length)) == 0 else {
        throw Failure(description: "\(path): cannot be made shorter (errno \(errno))")
      }
      let error = allocate(descriptor, length)
      guard error == 0 else {
        if size < length { _ = ftruncate(descriptor, off_t(size)) }
        throw Failure(description: "\(path): no room for \(length) bytes (errno \(error))")
      }
      isRecovered = size > 0
      unsafe region = try Self.map(length, descriptor, MAP_SHARED, path)
    } catch {
      close(descriptor)
      throw error
    }
    self.descriptor = descriptor
  }

  /// Names this start of this host, for whoever finds the file after another one; 0: not known.
  static let host: UInt64 = {
    let descriptor = unsafe open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { return 0 }
    defer { close(descriptor) }
    var text = [UInt8](repeating: 0, count: 64)
    let count = unsafe read(descriptor, &text, text.count)
    return count > 0 ? LeaseHash.of(Array(text[..<count])) : 0
  }()

  deinit {
    unsafe munmap(region.baseAddress, region.count)
    if descriptor >= 0 { close(descriptor) }
  }

  static func systemAllocate(_ descriptor: Int32, _ bytes: Int) -> Int32 {
    posix_fallocate(descriptor, 0, off_t(bytes))
  }

  /// How long the file must stay; nil: nothing in it is needed.
  private static func held(_ descriptor: Int32, of size: Int) -> Int? {
    let start = UnsafeMutableRawBufferPointer.allocate(
      byteCount: LeaseRegion.headerBytes, alignment: 8)
    defer { unsafe start.deallocate() }
    let count = unsafe pread(descriptor, start.baseAddress, start.count, 0)
    guard count == LeaseRegion.headerBytes else { return nil }
    return unsafe LeaseRegion.heldBytes(UnsafeRawBufferPointer(start), of: size, host: host)
  }

  private static func map(
    _ bytes: Int, _ descriptor: Int32, _ flags: Int32, _ what: String
  ) throws(Failure) -> UnsafeMutableRawBufferPointer {
    let address = unsafe mmap(nil, bytes, PROT_READ | PROT_WRITE, flags, descriptor, 0)
    guard let address = unsafe address, unsafe address != MAP_FAILED else {
      throw Failure(description: "\(what): \(bytes) bytes cannot be mapped (errno \(errno))")
    }
    return unsafe UnsafeMutableRawBufferPointer(start: address, count: bytes)
  }
}
