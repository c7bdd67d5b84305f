// Memory that is zero, begins at a page, and takes no room before it is written to: an index made
// for a busy hour costs an idle pod nothing.

#if canImport(Glibc)
  internal import Glibc
#else
  internal import Darwin
#endif

// Safe: `base` has `bytes` bytes from `init` to `deinit`; who uses it stays inside of them.
@safe struct ZeroedPages: ~Copyable {
  let base: UnsafeMutableRawPointer
  private let bytes: Int

  init(bytes: Int) {
    precondition(bytes > 0)
    let mapped = unsafe mmap(
      nil, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    // As any allocation that fails.
    guard let mapped = unsafe mapped, unsafe mapped != MAP_FAILED else {
      fatalError("no memory for \(bytes) bytes")
    }
    unsafe base = mapped
    self.bytes = bytes
  }

  deinit { _ = unsafe munmap(base, bytes) }
}
