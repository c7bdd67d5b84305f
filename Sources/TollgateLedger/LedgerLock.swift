// One service for one file of books. Two would hand out epochs of their own to the same buckets and
// fence each other for ever; nothing would be lost, and nothing would get anywhere. The lock is a
// file beside the database, so that reports and backups of the database are not held up by it.

internal import Glibc

struct LedgerLock: ~Copyable {
  private let descriptor: Int32

  /// - Throws: `LedgerError.unusable` where another process serves these books.
  init(database: String) throws(LedgerError) {
    let path = database + ".lock"
    descriptor = unsafe open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
    guard descriptor >= 0 else {
      throw .unusable("\(path): cannot be opened (errno \(errno))")
    }
    // One that is just ending, and a child between fork and exec, hold it for a moment.
    var patience = 100
    while flock(descriptor, LOCK_EX | LOCK_NB) != 0 {
      patience -= 1
      guard patience > 0 else {
        close(descriptor)
        throw .unusable("\(database): another `tollgate ledger` serves these books")
      }
      usleep(10_000)
    }
  }

  /// The file stays: another may have opened it already.
  deinit { close(descriptor) }
}
