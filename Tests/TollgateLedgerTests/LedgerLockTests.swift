// One service for one file of books, whatever name it is opened by.

import Foundation
import Testing
import TollgateTesting

@testable import TollgateLedger

@Suite(.blocking) struct LedgerLockTests {
  let directory: TemporaryDirectory
  let database: String

  init() throws {
    directory = try TemporaryDirectory("tg-lock")
    database = directory.file("books.sqlite")
  }

  private func isRefused(_ name: String) -> Bool {
    do {
      let lock = try LedgerLock(database: name)
      _ = consume lock
      return false
    } catch {
      return "\(error)".contains("another `tollgate ledger` serves these books")
    }
  }

  @Test func everyNameOfTheSameFileIsTheSame() throws {
    let lock = try LedgerLock(database: database)
    let files = FileManager.default
    try files.createSymbolicLink(
      atPath: directory.file("symbolic"), withDestinationPath: "books.sqlite")
    try files.linkItem(atPath: database, toPath: directory.file("hard"))
    let up = files.currentDirectoryPath.split(separator: "/").map { _ in "../" }.joined()
    #expect(isRefused(database))
    #expect(isRefused(directory.file("./books.sqlite")))
    #expect(isRefused(up + database.dropFirst()))
    #expect(isRefused(directory.file("symbolic")))
    #expect(isRefused(directory.file("hard")))
    #expect(!isRefused(directory.file("other.sqlite")))
    _ = consume lock
    for name in ["books.sqlite", "symbolic", "hard"] { #expect(!isRefused(directory.file(name))) }
  }

  /// A copy put in the place of the books of a service that still runs is another file.
  @Test func booksReplacedUnderARunningServiceAreStillLocked() throws {
    let lock = try LedgerLock(database: database)
    try FileManager.default.moveItem(atPath: database, toPath: directory.file("old"))
    try directory.write("books.sqlite", "")
    #expect(isRefused(database))
    _ = consume lock
    #expect(!isRefused(database))
  }

  /// The lock and SQLite's own do not get into each other's way, in this process or another.
  @Test func theDatabaseIsUsedUnderTheLock() throws {
    let books = try Books()
    let lock = try LedgerLock(database: books.path)
    try books.reopen()
    try books.open()
    _ = try books.apply([try usage(1, op: 1)])
    #expect(try LedgerStore(readOnly: books.path, bodies: .wire).verify().findings == [])
    try books.store.close()
    _ = consume lock
  }
}
