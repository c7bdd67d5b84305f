// The bounded reader: every reply type however the bytes are cut, and every bound.

import NIOCore
import Testing
import TollgateRedis
import TollgateTesting

@Suite(.blocking) struct RESPReaderTests {
  private static let wire =
    "+OK\r\n-ERR no\r\n:-42\r\n$5\r\nhe\0lo\r\n$-1\r\n*-1\r\n*0\r\n$0\r\n\r\n"
    + "*4\r\n:1\r\n$1\r\nx\r\n*2\r\n$-1\r\n+s\r\n-E x\r\n:9223372036854775807\r\n"
  private static let replies: [RESPReply] = [
    .status("OK"), .error("ERR no"), .integer(-42), .string([104, 101, 0, 108, 111]), .null, .null,
    .array([]), .string([]),
    .array([.integer(1), .string([120]), .array([.null, .status("s")]), .error("E x")]),
    .integer(Int64.max),
  ]

  private func drain(_ reader: RESPReader) throws -> [RESPReply] {
    var replies: [RESPReply] = []
    while let reply = try reader.next() { replies.append(reply) }
    return replies
  }

  @Test(arguments: [1, 2, 3, 7, 16, 1000])
  func repliesAreTheSameHoweverTheBytesAreCut(_ size: Int) throws {
    let reader = RESPReader()
    var buffer = ByteBuffer(string: Self.wire)
    var replies: [RESPReply] = []
    while buffer.readableBytes > 0 {
      if let slice = buffer.readSlice(length: min(size, buffer.readableBytes)) {
        reader.feed(slice)
      }
      replies += try drain(reader)
    }
    #expect(replies == Self.replies)
  }

  @Test func aMillionSmallRepliesDoNotAddUpToABound() throws {
    var limits = RESPLimits()
    limits.replyElementsMax = 4
    limits.replyBytesMax = 100
    let reader = RESPReader(limits: limits)
    for _ in 0..<1000 {
      reader.feed(ByteBuffer(string: "*2\r\n:1\r\n$3\r\nabc\r\n*2\r\n:1\r\n:2\r\n"))
      #expect(try drain(reader).count == 2)
    }
  }

  private func violation(_ wire: String, _ limits: RESPLimits = RESPLimits()) -> RESPViolation? {
    let reader = RESPReader(limits: limits)
    reader.feed(ByteBuffer(string: wire))
    do throws(RESPViolation) {
      while try reader.next() != nil {}
      return nil
    } catch {
      return error
    }
  }

  @Test func anArrayBeyondTheElementBoundIsRefusedByItsHeader() {
    var limits = RESPLimits()
    limits.replyElementsMax = 10
    #expect(violation("*10\r\n", limits) == nil)
    #expect(violation("*11\r\n", limits) == .tooManyElements)
    #expect(violation("*2000000000\r\n") == .tooManyElements)
  }

  @Test func nestedArraysShareOneElementBound() {
    var limits = RESPLimits()
    limits.replyElementsMax = 10
    #expect(violation("*2\r\n*4\r\n:1\r\n:2\r\n:3\r\n:4\r\n*4\r\n", limits) == nil)
    #expect(violation("*2\r\n*4\r\n:1\r\n:2\r\n:3\r\n:4\r\n*5\r\n", limits) == .tooManyElements)
  }

  @Test func nestingEndsAtEight() {
    let eight = String(repeating: "*1\r\n", count: 8)
    #expect(violation(eight + ":1\r\n") == nil)
    #expect(violation(eight + "*1\r\n:1\r\n") != nil)
  }

  @Test func aBulkBeyondItsBoundIsRefused() {
    var limits = RESPLimits()
    limits.bulkBytesMax = 4
    #expect(violation("$4\r\nabcd\r\n", limits) == nil)
    #expect(violation("*1\r\n$5\r\nabcde\r\n", limits) == .bulkTooLong)
  }

  @Test func anEndlessReplyIsRefusedBeforeItIsComplete() {
    var limits = RESPLimits()
    limits.replyBytesMax = 64
    #expect(violation("$1000000\r\n" + String(repeating: "x", count: 40), limits) == nil)
    #expect(violation("$1000000\r\n" + String(repeating: "x", count: 60), limits) == .replyTooLong)
    let parts = String(repeating: "$4\r\nabcd\r\n", count: 10)
    #expect(violation("*100\r\n" + parts, limits) == .replyTooLong)
  }

  @Test(arguments: [
    "?\r\n", "$-2\r\n", "$9999999999999999999\r\n", "*-2\r\n", ":12x\r\n", "HTTP/1.1 400\r\n",
  ])
  func garbageIsAViolation(_ wire: String) {
    #expect(violation(wire) != nil)
  }

  @Test func aViolationIsFinal() {
    let reader = RESPReader()
    reader.feed(ByteBuffer(string: "?\r\n"))
    #expect(throws: RESPViolation.self) { try reader.next() }
    reader.feed(ByteBuffer(string: "+OK\r\n"))
    #expect(throws: RESPViolation.self) { try reader.next() }
  }

  @Test func aReplyIsTwoWords() {
    #expect(MemoryLayout<RESPReply>.size <= 17)
  }
}
