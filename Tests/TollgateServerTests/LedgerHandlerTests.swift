// The sidecar's side of the ledger connection, frame by frame: each direction has correlation ids
// of its own, and a ledger that has gone silent is given up.

import NIOCore
import NIOEmbedded
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateServer

@Suite("Ledger connection", .blocking)
struct LedgerHandlerTests {
  private let channel = EmbeddedChannel()
  private let handler: LedgerHandler

  init() throws {
    handler = LedgerHandler(eventLoop: channel.embeddedEventLoop, onPush: { _ in true })
    try channel.pipeline.syncOperations.addHandler(handler)
    try channel.connect(to: SocketAddress(unixDomainSocketPath: "/ledger")).wait()
  }

  private func feed(_ message: some OpcodeMessage, correlation: UInt64) throws {
    var buffer = ByteBuffer()
    buffer.writeFrame(message, correlation: correlation)
    try channel.writeInbound(buffer)
  }

  private func sent() throws -> [Frame] {
    var decoder = FrameDecoder(frameBytesMax: WireLimits.frameBytesMax)
    while let bytes = try channel.readOutbound(as: ByteBuffer.self) { decoder.feed(bytes) }
    var frames: [Frame] = []
    while let frame = try decoder.next() { frames.append(frame) }
    return frames
  }

  @Test func thePingOfTheLedgerDoesNotAnswerARequestOfTheSameNumber() throws {
    var answers: [Result<[Frame], LedgerFailure>] = []
    handler.request(ConfigRequest(account: nil), timeout: .seconds(10)) { answers.append($0) }
    let request = try #require(try sent().first)
    try feed(Ping(nonce: 42), correlation: request.header.correlation)
    #expect(answers.isEmpty)
    let pong = try #require(try sent().first)
    #expect(pong.header.opcode == .pong)
    #expect(pong.header.correlation == request.header.correlation)
    #expect(try Pong.decode(pong).nonce == 42)

    let reply = ConfigReply(account: nil, version: 3, document: [])
    try feed(reply, correlation: request.header.correlation)
    #expect(try answers.map { try ConfigReply.decode($0.get()[0]) } == [reply])
  }

  @Test func aPingOfAnyNumberIsAnswered() throws {
    try feed(Ping(nonce: 7), correlation: 999)
    #expect(try sent().map(\.header.correlation) == [999])
    #expect(channel.isActive)
  }

  @Test func aSilentLedgerIsAskedAndThenLeft() throws {
    var failed = false
    handler.startProbing()
    let start = NIODeadline.now()
    handler.probeDue(now: start)
    #expect(try sent().isEmpty)
    handler.probeDue(now: start + LedgerHandler.probeInterval + .seconds(1))
    let ping = try #require(try sent().first)
    #expect(ping.header.opcode == .ping)
    try feed(Pong(nonce: try Ping.decode(ping).nonce), correlation: ping.header.correlation)
    #expect(channel.isActive)

    handler.request(ConfigRequest(account: nil), timeout: .seconds(60)) {
      if case .failure = $0 { failed = true }
    }
    handler.probeDue(now: .now() + LedgerHandler.silenceMax + .seconds(1))
    #expect(failed)
    #expect(!channel.isActive)
  }

  @Test func silenceIsLongerThanARequestMayTake() {
    #expect(LedgerHandler.silenceMax > LedgerLink.requestTimeout)
    #expect(LedgerHandler.probeInterval < LedgerHandler.silenceMax)
  }

  /// A push that nobody can keep ends the link: the next one says everything anew.
  @Test func aPushWithoutRoomEndsTheLink() throws {
    let channel = EmbeddedChannel()
    let handler = LedgerHandler(eventLoop: channel.embeddedEventLoop, onPush: { _ in false })
    try channel.pipeline.syncOperations.addHandler(handler)
    try channel.connect(to: SocketAddress(unixDomainSocketPath: "/ledger")).wait()
    var answers: [Result<[Frame], LedgerFailure>] = []
    handler.request(ConfigRequest(account: nil), timeout: .seconds(10)) { answers.append($0) }
    var buffer = ByteBuffer()
    buffer.writeFrame(
      EpochNotice(
        bucket: 1, epoch: 2, opener: try Name("one"), previousEpoch: 1, previousLast: 5),
      correlation: 0)
    try channel.writeInbound(buffer)
    #expect(!channel.isActive)
    guard case .failure(let failure)? = answers.first else {
      Issue.record("not answered")
      return
    }
    #expect(failure.kind == .disconnected)
  }
}
