// The bounds of the health port: so many connections at a time, and none that asks nothing for
// ever.

import Foundation
import NIOConcurrencyHelpers
import NIOCore
import NIOPosix
import Testing
import TollgateTesting

@testable import TollgateServer

@Suite(.serialized, .blocking) struct HealthServerTests {
  private static func start(
    silence: TimeAmount, metrics: @escaping @Sendable () -> String = { "x 1\n" }
  ) async throws -> (
    channel: any Channel, port: UInt16
  ) {
    let channel = try await HealthServer.start(
      host: "127.0.0.1", port: 0, group: MultiThreadedEventLoopGroup.singleton, silence: silence,
      report: { ReadinessReport(ready: true, lines: ["fine"]) }, metrics: metrics)
    return (channel, UInt16(channel.localAddress?.port ?? 0))
  }

  private static func say(_ text: String, _ fd: Int32) throws {
    #expect(try Socket.write(fd, Array(text.utf8)[...]) == text.utf8.count)
  }

  /// The next bytes; empty: closed; nil: nothing came in time.
  private static func hear(_ fd: Int32, milliseconds: Int) -> [UInt8]? {
    guard Socket.wait(fd, for: POLLIN, milliseconds: milliseconds) else { return nil }
    // A reset is an end as well.
    return (try? Socket.read(fd)) ?? []
  }

  private static let request = "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"

  private static func isAnswered(_ fd: Int32) throws -> Bool {
    try say(request, fd)
    return String(decoding: hear(fd, milliseconds: 5000) ?? [], as: UTF8.self).contains(" 200 ")
  }

  @Test func oneConnectionTooManyIsClosedAtOnce() async throws {
    let (channel, port) = try await Self.start(silence: HealthServer.silence)
    var open: [Int32] = []
    defer { for fd in open { Socket.close(fd) } }
    for _ in 0..<HealthServer.connectionsMax {
      let fd = try Socket.connect(.tcp("127.0.0.1", port))
      open.append(fd)
      // Answered: the server has counted it.
      #expect(try Self.isAnswered(fd))
    }
    let late = try Socket.connect(.tcp("127.0.0.1", port))
    #expect(Self.hear(late, milliseconds: 5000) == [], "closed without a word")
    Socket.close(late)
    #expect(try Self.isAnswered(open[0]), "those that were let in are served on")
    Socket.close(open.removeFirst())
    try eventually(within: .seconds(5), "there is room again") {
      let fd = try Socket.connect(.tcp("127.0.0.1", port))
      defer { Socket.close(fd) }
      return (try? Self.isAnswered(fd)) == true
    }
    try await channel.close().get()
  }

  /// PITFALL 42, of answers: who asks on without reading costs what the socket takes.
  @Test func answersThatNobodyReadsAreNotMade() async throws {
    let made = NIOLockedValueBox(0)
    let text = String(repeating: "m", count: 100_000)
    let (channel, port) = try await Self.start(silence: HealthServer.silence) {
      made.withLockedValue { $0 += 1 }
      return text
    }
    let fd = try Socket.connect(.tcp("127.0.0.1", port))
    defer { Socket.close(fd) }
    let asked = 1000
    let request = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    try Self.say(String(repeating: request, count: asked), fd)
    // Until nothing is made any more.
    var before = -1
    try eventually(within: .seconds(10), every: .milliseconds(300), "it stands still") {
      defer { before = made.withLockedValue { $0 } }
      return before > 0 && made.withLockedValue { $0 } == before
    }
    // The kernel's buffers of both ends hold some megabytes.
    #expect(before < 200, "\(before) answers of 100 kB were made for nobody")
    // Read at last, all of them come.
    var length = 0
    while length < asked * text.utf8.count, let bytes = Self.hear(fd, milliseconds: 5000),
      !bytes.isEmpty
    { length += bytes.count }
    #expect(length > asked * text.utf8.count)
    #expect(made.withLockedValue { $0 } == asked)
    try await channel.close().get()
  }

  @Test(arguments: ["", "GET /readyz HTT", "GET /readyz HTTP/1.1\r\nHost: x\r\n", request])
  func aConnectionThatSaysNoMoreIsClosed(_ said: String) async throws {
    let (channel, port) = try await Self.start(silence: .milliseconds(200))
    let fd = try Socket.connect(.tcp("127.0.0.1", port))
    defer { Socket.close(fd) }
    if !said.isEmpty { try Self.say(said, fd) }
    if said == Self.request { #expect(Self.hear(fd, milliseconds: 5000)?.isEmpty == false) }
    let began = ContinuousClock.now
    #expect(Self.hear(fd, milliseconds: 5000) == [])
    #expect(.now - began > .milliseconds(100), "not before its time")
    try await channel.close().get()
  }
}
