// The file behind the fallback queue: one line per event (FallbackRecord), appended with one write
// each before the answer it stands for is given. It is written only while Redis is away and while
// what was let through is posted, so its cost is not on the usual path.
//
// Half a line is cut off before anything is written behind it, at opening (the process died inside
// the write, and the answer was never given) and after an append that failed; a line whose checksum
// does not fit is reported and skipped. What was posted is written down as well and is not posted
// again after a restart. When more than half of the file is of no use any more it is rewritten
// beside itself, synced and renamed; until then every line goes to both files, so that the slow
// part, the sync, needs no lock. The file never holds more than `bytesMax`.
//
// The file is locked: two sidecars on one journal would post each other's entries. It says whose it
// is (JournalOwner): another deployment does not start with it while it holds something. It
// survives the process, not the host: appends are not synced.

import Glibc
import TollgateCore

struct FallbackJournal: ~Copyable {
  struct Failure: Error, CustomStringConvertible {
    let description: String
  }

  /// write(2), replaceable so that a test can fill the disk: descriptor, bytes, how many it took.
  typealias Write = @Sendable (Int32, ArraySlice<UInt8>) -> Int

  private let path: String
  private let write: Write
  private let bytesMax: Int
  /// The line that stands before all others; none where nobody is named.
  private let owner: [UInt8]
  private var descriptor: Int32
  private(set) var size = 0
  /// There is half a line behind `size` that could not be cut off yet.
  private var isTorn = false
  /// The file being written to take this one's place.
  private var successor: (descriptor: Int32, size: Int)?

  var recovered: [FallbackRecord] = []
  /// Lines that could not be read, as they were found; and half a line at the end.
  private(set) var damaged: [String] = []
  private(set) var tornBytes = 0

  /// What the lines of a file say.
  private struct Lines {
    var records: [FallbackRecord] = []
    var damaged: [String] = []
    /// nil: an older release wrote them.
    var owner: JournalOwner?

    init(_ bytes: ArraySlice<UInt8>) {
      for line in bytes.split(separator: 0x0A) {
        if let record = FallbackRecord(line: line) {
          records.append(record)
        } else if let owner = JournalOwner(line: line) {
          self.owner = owner
        } else {
          damaged.append(String(decoding: line, as: UTF8.self))
        }
      }
    }

    /// Whether any of it is not done with.
    var holdsAny: Bool {
      var open: Set<OperationID> = []
      for record in records {
        switch record {
        case .admitted(let operation): open.insert(operation.id)
        case .refused(let refusal): open.insert(refusal.operation.id)
        case .settled(let id): open.remove(id)
        case .cancelled: break
        }
      }
      // What cannot be read may be somebody's.
      return !open.isEmpty || !damaged.isEmpty
    }
  }

  /// - Parameter deployment: whose it is; nil: it is not asked and not said.
  init(
    path: String, deployment: Deployment? = nil, bytesMax: Int = 1 << 30,
    write: @escaping Write = FallbackJournal.systemWrite
  ) throws(Failure) {
    let descriptor = try Self.openLocked(path)
    _ = unsafe unlink(path + ".new")
    let torn: Int
    var end: Int
    var lines: Lines
    do throws(Failure) {
      let bytes = try Self.contents(descriptor, path)
      end = bytes.lastIndex(of: 0x0A).map { $0 + 1 } ?? 0
      torn = bytes.count - end
      lines = Lines(bytes[..<end])
      if let deployment, let owner = lines.owner {
        let differences = owner.differences(from: deployment)
        if !differences.isEmpty {
          guard !lines.holdsAny else {
            throw Failure(
              description: "journal " + JournalOwner.refusal(of: path, differences)
                + (lines.damaged.isEmpty
                  ? "" : " (\(lines.damaged.count) lines cannot be read: only the latter helps)"))
          }
          lines.records = []
          end = 0
        }
      }
      guard end == bytes.count || ftruncate(descriptor, off_t(end)) == 0 else {
        throw Failure(
          description: "journal \(path): half a line at its end cannot be cut off (errno \(errno))")
      }
    } catch {
      close(descriptor)
      throw error
    }
    self.path = path
    self.bytesMax = bytesMax
    self.write = write
    self.descriptor = descriptor
    owner = deployment.map { JournalOwner($0).line } ?? []
    size = end
    tornBytes = torn
    recovered = lines.records
    damaged = lines.damaged
    // Where this cannot be written the next start does it.
    if size > 0, lines.owner == nil, !owner.isEmpty { _ = append(owner) }
  }

  deinit {
    close(descriptor)
    if let successor { close(successor.descriptor) }
  }

  /// False: not written, and nothing of it is left in the file.
  mutating func append(_ line: [UInt8]) -> Bool {
    let bytes = size == 0 ? owner + line : line
    guard size + bytes.count <= bytesMax, mend() else { return false }
    guard put(bytes, descriptor) else {
      isTorn = true
      _ = mend()
      return false
    }
    size += bytes.count
    if let successor {
      if put(line, successor.descriptor) {
        self.successor?.size += line.count
      } else {
        endRewrite(isSynced: false)
      }
    }
    return true
  }

  /// Nothing in it is needed any more.
  mutating func reset() {
    endRewrite(isSynced: false)
    size = 0
    isTorn = true
    _ = mend()
  }

  // MARK: - Rewriting

  var isRewriting: Bool { successor != nil }

  /// Starts a new file with these lines. Answers the descriptor to sync, outside of any lock;
  /// `endRewrite` must follow. It stays open till then, unless `reset` or an append that failed
  /// gives the new file up: then `isRewriting` is false, and the sync was for nothing.
  mutating func beginRewrite(_ lines: [UInt8]) -> Int32? {
    guard successor == nil else { return nil }
    let new = unsafe open(
      path + ".new", O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0o600)
    guard new >= 0 else { return nil }
    let lines = owner + lines
    successor = (new, lines.count)
    guard flock(new, LOCK_EX | LOCK_NB) == 0, put(lines, new) else {
      endRewrite(isSynced: false)
      return nil
    }
    // A descriptor of its own: this one may be given up while the other is being synced.
    let copy = fcntl(new, F_DUPFD_CLOEXEC, 0)
    if copy < 0 { endRewrite(isSynced: false) }
    return copy < 0 ? nil : copy
  }

  /// The new file takes the old one's place, or is given up.
  mutating func endRewrite(isSynced: Bool) {
    guard let successor else { return }
    self.successor = nil
    guard isSynced, unsafe rename(path + ".new", path) == 0 else {
      close(successor.descriptor)
      _ = unsafe unlink(path + ".new")
      return
    }
    close(descriptor)
    descriptor = successor.descriptor
    size = successor.size
    isTorn = false
  }

  /// Makes a rename survive the host.
  static func syncDirectory(of path: String) {
    let end = path.lastIndex(of: "/")
    let directory = end.map { $0 == path.startIndex ? "/" : String(path[..<$0]) } ?? "."
    let descriptor = unsafe open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    guard descriptor >= 0 else { return }
    _ = fsync(descriptor)
    close(descriptor)
  }

  var directoryToSync: String { path }

  // MARK: - System calls

  private static func contents(_ descriptor: Int32, _ path: String) throws(Failure) -> [UInt8] {
    var bytes: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 64 * 1024)
    while true {
      let count = unsafe read(descriptor, &chunk, chunk.count)
      if count < 0 && errno == EINTR { continue }
      guard count >= 0 else {
        throw Failure(description: "journal \(path): cannot be read (errno \(errno))")
      }
      guard count > 0 else { return bytes }
      bytes.append(contentsOf: chunk[..<count])
    }
  }

  private mutating func mend() -> Bool {
    guard isTorn else { return true }
    isTorn = ftruncate(descriptor, off_t(size)) != 0
    return !isTorn
  }

  private func put(_ line: [UInt8], _ descriptor: Int32) -> Bool {
    var rest = line[...]
    while !rest.isEmpty {
      let count = write(descriptor, rest)
      guard count > 0 else { return false }
      rest = rest.dropFirst(count)
    }
    return true
  }

  static func systemWrite(_ descriptor: Int32, _ bytes: ArraySlice<UInt8>) -> Int {
    while true {
      let count = unsafe bytes.withUnsafeBytes { buffer in
        unsafe Glibc.write(descriptor, buffer.baseAddress, buffer.count)
      }
      if count >= 0 || errno != EINTR { return count }
    }
  }

  /// Between opening and locking, the file may have been renamed away by the one who held it; then
  /// the lock is on a file that nobody will find again.
  private static func openLocked(_ path: String) throws(Failure) -> Int32 {
    // A child between fork and exec holds every lock of its parent for a moment.
    var patience = 100
    for _ in 0..<10 {
      let descriptor = unsafe open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0o600)
      guard descriptor >= 0 else {
        throw Failure(description: "journal \(path): cannot be opened (errno \(errno))")
      }
      while flock(descriptor, LOCK_EX | LOCK_NB) != 0, patience > 0 {
        patience -= 1
        usleep(10_000)
      }
      guard patience > 0 else {
        close(descriptor)
        throw Failure(description: "journal \(path): another process holds it")
      }
      var held = stat()
      var found = stat()
      if unsafe fstat(descriptor, &held) == 0, unsafe stat(path, &found) == 0,
        held.st_ino == found.st_ino, held.st_dev == found.st_dev
      {
        return descriptor
      }
      close(descriptor)
    }
    throw Failure(description: "journal \(path): is replaced again and again")
  }
}
