// What is bound past the library: each kind of value as it is read back, and a refusal that says
// what SQLite said and leaves nothing.

import Foundation
import GRDB
import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateLedger

@Suite(.blocking) struct DeltaInsertTests {
  private let queue: DatabaseQueue
  private let id = OperationID(high: 0x0102_0304_0506_0708, low: 0xF0F1_F2F3_F4F5_F6F7)

  init() throws {
    queue = try DatabaseQueue()
    try queue.write { db in
      try db.execute(
        sql: """
          CREATE TABLE t (op BLOB NOT NULL PRIMARY KEY, a INTEGER, b INTEGER, body BLOB NOT NULL)
          STRICT
          """)
    }
  }

  private static let sql = "INSERT INTO t (op, a, b, body) VALUES (?, ?, ?, ?)"

  @Test func whatIsBoundIsReadBack() throws {
    try queue.write { db in
      let insert = try DeltaInsert(db, sql: Self.sql)
      try insert(id, Int64.min, nil, bytes: [0, 255, 7])
      let other = OperationID(high: 1, low: 2)
      try insert(other, nil, .max, bytes: [])
      let rows = try Row.fetchAll(db, sql: "SELECT * FROM t ORDER BY op")
      #expect(rows.count == 2)
      let first = try #require(rows.first)
      let last = try #require(rows.last)
      #expect(last["op"] == id.blob)
      #expect(last["a"] == Int64.min)
      #expect(last["b"] as Int64? == nil)
      #expect(last["body"] == Data([0, 255, 7]))
      #expect(first["op"] == other.blob)
      #expect(first["a"] as Int64? == nil)
      #expect(first["b"] == Int64.max)
      #expect(first["body"] == Data())
    }
  }

  @Test func aRefusalSaysWhyAndTheNextIsAsIfItHadNotBeen() throws {
    try queue.write { db in
      let insert = try DeltaInsert(db, sql: Self.sql)
      try insert(id, 1, 2, bytes: [1])
      let error = #expect(throws: DatabaseError.self) { try insert(id, 3, 4, bytes: [2]) }
      #expect(error?.resultCode == .SQLITE_CONSTRAINT)
      #expect(error?.message?.contains("t.op") == true)
      // Of the refused one nothing is left, neither in the table nor bound: without a body of its
      // own the next would be let in with that one's.
      let next = OperationID(high: 9, low: 9)
      #expect(throws: DatabaseError.self) { try insert(next, 5, 6) }
      try insert(next, 5, 6, bytes: [3])
      let sums = try Row.fetchOne(db, sql: "SELECT sum(a) AS a, sum(b) AS b FROM t")
      #expect(sums?["a"] == 6)
      #expect(sums?["b"] == 8)
    }
  }
}
