// CPU time of this process and of the servers it drives: the stablest figure of a measurement.

internal import Glibc

package enum ProcessUsage {
  /// Nanoseconds of user and system time of this process.
  package static func own() -> Int64 {
    var usage = rusage()
    unsafe getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage)
    func nanoseconds(_ time: timeval) -> Int64 {
      Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_usec) * 1000
    }
    return nanoseconds(usage.ru_utime) + nanoseconds(usage.ru_stime)
  }

  /// The same of another process, to the kernel's clock tick; nil where it is gone.
  package static func of(_ pid: Int32) -> Int64? {
    guard let text = read("/proc/\(pid)/stat"), let end = text.lastIndex(of: ")") else {
      return nil
    }
    // The fields after the command name, which may itself hold spaces.
    let fields = text[text.index(after: end)...].split(separator: " ")
    guard fields.count > 12, let user = Int64(fields[11]), let system = Int64(fields[12]) else {
      return nil
    }
    return (user + system) * (1_000_000_000 / Int64(max(1, sysconf(Int32(_SC_CLK_TCK)))))
  }

  package static func name(_ pid: Int32) -> String {
    (read("/proc/\(pid)/comm") ?? "?").split(separator: "\n").first.map(String.init) ?? "?"
  }

  package static func read(_ path: String) -> String? {
    guard let bytes = try? File.bytes(path) else { return nil }
    return String(decoding: bytes, as: UTF8.self)
  }
}

package enum File {
  /// The whole of a file.
  package static func bytes(_ path: String, bytesMax: Int = 1 << 30) throws -> [UInt8] {
    let descriptor = unsafe open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { throw BenchError.system("cannot read \(path)", errno) }
    defer { close(descriptor) }
    var bytes: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 1 << 16)
    while true {
      let n = unsafe chunk.withUnsafeMutableBytes {
        unsafe Glibc.read(descriptor, $0.baseAddress, $0.count)
      }
      if n == 0 { return bytes }
      guard n > 0 else { throw BenchError.system("cannot read \(path)", errno) }
      guard bytes.count + n <= bytesMax else { throw BenchError("\(path) is too large") }
      bytes += chunk[..<n]
    }
  }
}
