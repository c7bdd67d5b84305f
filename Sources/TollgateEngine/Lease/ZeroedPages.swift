// Memory that is zero and takes no room before it is written to: an index made for a busy hour
// costs nothing before its first use. It asks for large pages: whoever looks at random places of it
// would else wait for the page tables as often as for the memory.

#if canImport(Glibc)
  internal import Glibc
#else
  internal import Darwin
#endif

// Safe: `base` has `bytes` bytes from `init` to `deinit`; who uses it stays inside of them.
@safe struct ZeroedPages: ~Copyable {
  let base: UnsafeMutableRawPointer
  private let mapping: UnsafeMutableRawPointer
  private let bytes: Int

  private static let largePage = 2 << 20

  init(bytes wanted: Int) {
    precondition(wanted > 0)
    bytes = wanted + Self.largePage
    let mapped = unsafe mmap(
      nil, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    // As any allocation that fails.
    guard let mapped = unsafe mapped, unsafe mapped != MAP_FAILED else {
      fatalError("no memory for \(bytes) bytes")
    }
    unsafe mapping = mapped
    unsafe base = mapped + (-Int(bitPattern: mapped) & (Self.largePage - 1))
    #if canImport(Glibc)
      _ = unsafe madvise(base, wanted, MADV_HUGEPAGE)
    #endif
  }

  deinit { _ = unsafe munmap(mapping, bytes) }
}
