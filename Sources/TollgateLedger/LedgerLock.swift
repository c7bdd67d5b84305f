// One service for one file of books. Two would hand out epochs of their own to the same buckets and
// fence each other for ever; nothing would be lost, and nothing would get anywhere.
//
// Two locks, because either alone can be walked around. The one on the file of books itself holds
// whatever name it is opened by: a relative path, a symbolic link, a hard link. The one on a file
// beside it holds where the books were replaced by another copy under a service that still runs.
// Both are flock locks, which SQLite does not use: reports, backups and SQLite's own locks on the
// same file are not held up by them, nor they by those.
//
// SQLite's locks go away when any descriptor of the same file is closed in this process; so the
// store has to be closed before this is given up, as `runLedger` does.

internal import Glibc

struct LedgerLock: ~Copyable {
  private let books: Int32
  private let beside: Int32

  /// - Throws: `LedgerError.unusable` where another process serves these books.
  init(database: String) throws(LedgerError) {
    // The same mode that SQLite would make the file with: others may read the books.
    let books = try Self.hold(database, mode: 0o644, database)
    let beside: Int32
    do throws(LedgerError) {
      beside = try Self.hold(Self.resolved(database) + ".lock", mode: 0o600, database)
    } catch {
      close(books)
      throw error
    }
    self.books = books
    self.beside = beside
  }

  /// The files stay: another may have opened them already.
  deinit {
    close(beside)
    close(books)
  }

  private static func hold(
    _ path: String, mode: mode_t, _ database: String
  ) throws(LedgerError) -> Int32 {
    // One that is just ending, and a child between fork and exec, hold it for a moment.
    var patience = 100
    while true {
      let descriptor = unsafe open(path, O_RDWR | O_CREAT | O_CLOEXEC, mode)
      guard descriptor >= 0 else {
        throw .unusable("\(path): cannot be opened (errno \(errno))")
      }
      if flock(descriptor, LOCK_EX | LOCK_NB) == 0 && isStill(descriptor, at: path) {
        return descriptor
      }
      close(descriptor)
      patience -= 1
      guard patience > 0 else {
        throw .unusable("\(database): another `tollgate ledger` serves these books")
      }
      // Who holds it may be on its way out; the system tells nobody when it is gone.
      usleep(10_000)
    }
  }

  /// Between opening and locking it another file may have been put in its place.
  private static func isStill(_ descriptor: Int32, at path: String) -> Bool {
    var held = stat()
    var named = stat()
    guard unsafe fstat(descriptor, &held) == 0, unsafe stat(path, &named) == 0 else { return false }
    return held.st_dev == named.st_dev && held.st_ino == named.st_ino
  }

  /// The name that every other path to the same directory entry leads to.
  private static func resolved(_ path: String) -> String {
    guard let text = unsafe realpath(path, nil) else { return path }
    defer { unsafe free(text) }
    return unsafe String(cString: text)
  }
}
