// What a local loop does for one connection: frames however they arrive, what the fast path may
// answer and what not, and every way in which a connection ends.

import NIOCore
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateServer

@Suite(.serialized, .blocking) struct LocalLoopTests {
  private func with(
    _ settings: LocalLoop.Settings? = nil,
    tune: (inout ServerConfiguration) -> Void = { _ in },
    _ body: (LocalRig) async throws -> Void
  ) async throws {
    let rig = try await LocalRig(settings: settings, tune: tune)
    do {
      try await body(rig)
    } catch {
      try? await rig.stop()
      throw error
    }
    try await rig.stop()
  }

  /// Hello, a request for the fast path, one for the conversation, a ping.
  private func transcript() throws -> ByteBuffer {
    var all = LocalClient.helloFrame()
    all.writeImmutableBuffer(try LocalClient.consumeFrame(correlation: 2))
    all.writeImmutableBuffer(try LocalClient.consumeFrame(correlation: 3, isLeft: true))
    all.writeImmutableBuffer(try LocalClient.consumeFrame(correlation: 4))
    all.writeFrame(Ping(nonce: 7), correlation: 5)
    return all
  }

  private func answers(_ client: LocalClient, _ count: Int) throws -> Set<UInt64> {
    var seen: Set<UInt64> = []
    for _ in 0..<count { seen.insert(try client.next().header.correlation) }
    return seen
  }

  @Test func framesInOneWriteAreAllAnswered() async throws {
    try await with { rig in
      let client = try LocalClient(rig.endpoint)
      try client.send(transcript())
      #expect(try answers(client, 5) == [1, 2, 3, 4, 5])
      #expect(rig.metrics.frames.current == 5)
    }
  }

  @Test func framesByteByByteAreAllAnswered() async throws {
    try await with { rig in
      let client = try LocalClient(rig.endpoint)
      for byte in try transcript().readableBytesView { try client.send(bytes: [byte][...]) }
      #expect(try answers(client, 5) == [1, 2, 3, 4, 5])
    }
  }

  /// What follows the hello is read by the session's limits, not by the hello's.
  @Test func aLargeFrameRightBehindTheHelloIsRead() async throws {
    try await with(tune: { $0.adminToken = "a" }) { rig in
      let client = try LocalClient(rig.endpoint)
      var all = LocalClient.helloFrame(role: .admin, token: "a")
      let body = [UInt8](repeating: 0x20, count: 300_000)
      all.writeFrame(AdminRequest(rawMethod: 1, body: body), correlation: 2)
      all.writeImmutableBuffer(try LocalClient.consumeFrame(correlation: 3))
      try client.send(all)
      _ = try client.next(.welcome)
      var opcodes: Set<Opcode?> = []
      for _ in 0..<2 { opcodes.insert(try client.next().header.opcode) }
      #expect(opcodes == [.adminReply, .decisions])
    }
  }

  @Test func nothingIsAnsweredBeforeTheHello() async throws {
    try await with { rig in
      let client = try LocalClient(rig.endpoint)
      var both = try LocalClient.consumeFrame(correlation: 2)
      both.writeImmutableBuffer(try LocalClient.consumeFrame(correlation: 3))
      try client.send(both)
      let error = try ErrorReply.decode(try client.next(.error))
      #expect(error.code == .helloRequired)
      #expect(client.isEnded())
    }
  }

  @Test func aFrameAboveTheHellosLimitIsRefusedUnread() async throws {
    try await with { rig in
      let client = try LocalClient(rig.endpoint)
      var header = ByteBuffer(repeating: 0, count: FrameHeader.bytes)
      FrameHeader(opcode: .hello, payloadBytes: 5000, correlation: 1).set(in: &header, at: 0)
      try client.send(header)
      #expect(try ErrorReply.decode(try client.next(.error)).code == .frameTooLarge)
      #expect(client.isEnded())
    }
  }

  @Test func whatFollowsABrokenHeaderIsNotAnswered() async throws {
    try await with { rig in
      let client = try LocalClient(rig.endpoint)
      try client.greet()
      var all = try LocalClient.consumeFrame(correlation: 2)
      all.writeRepeatingByte(0xFF, count: FrameHeader.bytes)
      all.writeImmutableBuffer(try LocalClient.consumeFrame(correlation: 3))
      try client.send(all)
      #expect(try client.next(.decisions).header.correlation == 2)
      #expect(try ErrorReply.decode(try client.next(.error)).code == .badFrame)
      #expect(client.isEnded())
      #expect(rig.metrics.protocolErrors.current == 1)
    }
  }

  /// A correlation id of 0 is fatal, also where the fast path would not look at it.
  @Test func aRequestWithoutCorrelationEndsTheConnection() async throws {
    try await with { rig in
      let client = try LocalClient(rig.endpoint)
      try client.greet()
      try client.send(try LocalClient.consumeFrame(correlation: 0))
      #expect(try ErrorReply.decode(try client.next(.error)).code == .badFrame)
      #expect(client.isEnded())
    }
  }

  @Test func nothingIsAnsweredBehindTheClientsGoAway() async throws {
    try await with { rig in
      let client = try LocalClient(rig.endpoint)
      try client.greet()
      var all = ByteBuffer()
      all.writeFrame(
        GoAway(code: .draining, graceMilliseconds: 0, message: ""), correlation: 0)
      all.writeImmutableBuffer(try LocalClient.consumeFrame(correlation: 2))
      try client.send(all)
      #expect(client.isEnded())
    }
  }

  @Test func aDrainSaysGoodbyeAndEndsIt() async throws {
    try await with { rig in
      let client = try LocalClient(rig.endpoint)
      try client.greet()
      rig.drain()
      _ = try client.next(.goAway)
      #expect(client.isEnded())
      try await Self.noneOpen(rig)
    }
  }

  @Test func aStoppedListenerTakesNobody() async throws {
    try await with { rig in
      let client = try LocalClient(rig.endpoint)
      try client.greet()
      await rig.loops.stopListening()
      #expect(throws: (any Error).self) { try LocalClient(rig.endpoint) }
      try client.send(try LocalClient.consumeFrame(correlation: 2))
      _ = try client.next(.decisions)
    }
  }

  @Test func overTheBoundOfConnectionsIsRefusedAndTold() async throws {
    try await with(tune: { $0.limits.connectionsMax = 2 }) { rig in
      let first = try LocalClient(rig.endpoint)
      let second = try LocalClient(rig.endpoint)
      try first.greet()
      try second.greet()
      let third = try LocalClient(rig.endpoint)
      #expect(try ErrorReply.decode(try third.next(.error)).code == .overloaded)
      #expect(third.isEnded())
      #expect(rig.metrics.connections.current == 2)
    }
  }

  @Test func overTheBoundOfPlacesIsClosedAtOnce() async throws {
    try await with(.init(connectionsMax: 1)) { rig in
      let first = try LocalClient(rig.endpoint)
      try first.greet()
      #expect(try LocalClient(rig.endpoint).isEnded())
      try first.send(try LocalClient.consumeFrame(correlation: 2))
      _ = try first.next(.decisions)
    }
  }

  /// Requests that only the fast path sees keep a session; without any it ends.
  @Test func answersOfTheFastPathCountAsTraffic() async throws {
    try await with(tune: { $0.limits.idleMilliseconds = 300 }) { rig in
      let client = try LocalClient(rig.endpoint)
      try client.greet()
      let end = ContinuousClock.now.advanced(by: .milliseconds(900))
      var number: UInt64 = 2
      while ContinuousClock.now < end {
        try client.send(try LocalClient.consumeFrame(correlation: number))
        _ = try client.next(.decisions)
        rig.timePassed()
        number += 1
      }
      try await eventually("an idle session ends") {
        await Task.yield()
        rig.timePassed()
        return Socket.wait(client.descriptor, for: 1, milliseconds: 0)
      }
      #expect(try GoAway.decode(try client.next(.goAway)).code == .idleTimeout)
      #expect(client.isEnded())
    }
  }

  @Test func aConnectionThatSaysNothingEnds() async throws {
    try await with(tune: { $0.limits.helloMilliseconds = 50 }) { rig in
      let client = try LocalClient(rig.endpoint)
      try await eventually("a mute connection ends") {
        await Task.yield()
        rig.timePassed()
        return Socket.wait(client.descriptor, for: 1, milliseconds: 0)
      }
      #expect(try ErrorReply.decode(try client.next(.error)).code == .idleTimeout)
      #expect(client.isEnded())
    }
  }

  /// A peer that does not read is not read either; when it reads, it gets everything, whole, also
  /// where every other answer is its conversation's, written by another thread.
  @Test(arguments: [false, true])
  func aSlowReaderIsNotReadAndLosesNothing(isMixed: Bool) async throws {
    try await with(.init(connectionsMax: 10, unsentMax: 65_536, unsentLow: 4096)) { rig in
      let client = try LocalClient(rig.endpoint)
      try client.greet()
      Socket.setNonBlocking(client.descriptor)
      var sent: UInt64 = 0
      var refusals = 0
      var rest: ArraySlice<UInt8> = []
      // Full when nothing was taken for a while: the loop has stopped reading.
      while refusals < 200 {
        if rest.isEmpty {
          sent += 1
          let frame = try LocalClient.consumeFrame(
            correlation: sent + 1, isLeft: isMixed && sent % 2 == 0)
          rest = Array(frame.readableBytesView)[...]
        }
        let taken = try Socket.write(client.descriptor, rest)
        rest = rest.dropFirst(taken)
        if taken == 0 {
          refusals += 1
          _ = Socket.wait(client.descriptor, for: 4, milliseconds: 2)
        } else {
          refusals = 0
        }
        try #require(sent < 1_000_000)
      }
      // The rest of the last one goes as room comes.
      var got: UInt64 = 0
      while got < sent {
        if isMixed { _ = try client.next() } else { _ = try client.next(.decisions) }
        got += 1
        if !rest.isEmpty { rest = rest.dropFirst(try Socket.write(client.descriptor, rest)) }
      }
      #expect(got == sent && sent > 1000)
    }
  }

  @Test func aThousandHalfOpenConnectionsLeaveOthersServed() async throws {
    try await with { rig in
      var mute: [LocalClient] = []
      var random = SeededRandom.fromEnvironment("half open")
      for _ in 0..<1000 {
        let client = try LocalClient(rig.endpoint)
        let garbage = (0..<random.next() % 30).map { _ in UInt8(truncatingIfNeeded: random.next()) }
        // A wrong first byte ends it; some send half a header and wait.
        try? client.send(bytes: (random.chance(0.5) ? [0x54, 0x47, 1] : garbage)[...])
        mute.append(client)
      }
      let good = try LocalClient(rig.endpoint)
      try good.greet()
      for number in 2..<100 {
        try good.send(try LocalClient.consumeFrame(correlation: UInt64(number)))
        _ = try good.next(.decisions)
      }
      mute.removeAll()
      try await eventually("only the good one is open") {
        await Task.yield()
        return rig.metrics.connections.current == 1
      }
    }
  }

  private static func noneOpen(_ rig: LocalRig) async throws {
    try await eventually("no connection is open") {
      await Task.yield()
      return rig.metrics.connections.current == 0
    }
  }
}

@Suite(.blocking) struct LocalLinkTests {
  private func link() throws -> LocalLink {
    LocalLink(key: ConnectionKey(place: 0, taken: 0), descriptor: -1, loop: try LoopInbox())
  }

  @Test func readingWaitsWhenTooMuchLiesUnread() throws {
    let link = try link()
    #expect(!link.handedOver(LocalLink.unreadMax))
    #expect(link.handedOver(1))
  }

  @Test func readingGoesOnOnceWhenLittleIsLeft() throws {
    let link = try link()
    _ = link.handedOver(LocalLink.unreadMax + 1)
    #expect(!link.workedOn(1))
    #expect(link.workedOn(LocalLink.unreadMax - LocalLink.unreadLow))
    #expect(!link.workedOn(LocalLink.unreadLow))
  }

  @Test func whoeverNeverWaitedIsNotToldToGoOn() throws {
    let link = try link()
    _ = link.handedOver(100)
    #expect(!link.workedOn(100))
  }

  /// A place that was taken again is another connection.
  @Test func aKeyNamesOneConnection() {
    let key = ConnectionKey(place: 7, taken: 3)
    #expect(ConnectionKey(number: key.number) == key)
    #expect(ConnectionKey(place: 7, taken: 4) != key)
    #expect(key.number < LocalLoop.listenerNumber)
  }
}
