// The program's own text, as far as it is mapped into memory. Most of what the start ran is never
// run again, and the system maps sixteen pages for each that is touched: of some 25 MB that are
// resident when a sidecar is ready, one at work needs a few. What is let go stays in the system's
// page cache, and what is needed after all is mapped again as it is touched: without a read, unless
// the system was short of memory meanwhile.

import Glibc

enum ProgramText {
  /// Once, however often it is asked for: with every quiet moment the first request behind it would
  /// pay for the rest.
  static func letGoOfStart() { _ = ofStart }

  private static let ofStart = letGo()

  /// Bytes that were resident of it and may be again.
  static func letGo() -> Int {
    var bytes = 0
    for text in mapped() {
      // Safe: nothing was ever written to these pages, so they are read from the file again.
      let start = unsafe UnsafeMutableRawPointer(bitPattern: text.start)
      if unsafe madvise(start, text.length, MADV_DONTNEED) == 0 { bytes += text.resident }
    }
    return bytes
  }

  struct Mapping {
    let start: UInt
    let length: Int
    let resident: Int
  }

  /// What is executable, of a file, and in no page a copy of its own (as a debugger's breakpoint
  /// makes one).
  static func mapped() -> [Mapping] {
    var found: [Mapping] = []
    var candidate: (start: UInt, end: UInt)?
    var resident = 0
    for line in lines(of: "/proc/self/smaps") {
      let words = line.split(separator: " ")
      guard let first = words.first else { continue }
      if first.hasSuffix(":") {
        guard let (start, end) = candidate, words.count > 1, let kilobytes = Int(words[1]) else {
          continue
        }
        if first == "Rss:" { resident = kilobytes << 10 }
        if first == "Anonymous:" {
          candidate = nil
          if kilobytes == 0 {
            found.append(
              Mapping(start: start, length: Int(end - start), resident: resident))
          }
        }
      } else {
        // start-end r-xp offset device inode path
        let ends = first.split(separator: "-").compactMap { UInt($0, radix: 16) }
        candidate =
          words.count > 5 && words[1] == "r-xp" && words[5].hasPrefix("/") && ends.count == 2
          ? (ends[0], ends[1]) : nil
      }
    }
    return found
  }

  private static func lines(of path: String) -> [Substring] {
    let descriptor = unsafe open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { return [] }
    defer { close(descriptor) }
    var text: [UInt8] = []
    var part = [UInt8](repeating: 0, count: 64 << 10)
    while true {
      let count = unsafe read(descriptor, &part, part.count)
      guard count > 0 else { break }
      text += part[..<count]
    }
    return String(decoding: text, as: UTF8.self).split(separator: "\n")
  }
}
