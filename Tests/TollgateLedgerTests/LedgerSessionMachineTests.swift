// One connection, as transcripts and as a table of states and frames.

import NIOCore
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateLedger

@Suite(.blocking) struct LedgerSessionMachineTests {
  var machine = LedgerSessionMachine(token: "secret")

  private func frame(
    _ message: some OpcodeMessage, correlation: UInt64 = 1, flags: FrameFlags = []
  ) throws -> Frame {
    var buffer = ByteBuffer()
    buffer.writeFrame(message, correlation: correlation, flags: flags)
    var decoder = FrameDecoder(frameBytesMax: WireLimits.frameBytesMax)
    decoder.feed(buffer)
    return try #require(try decoder.next())
  }
  private func hello(token: String = "secret", role: Role = .ledger) throws -> Frame {
    try frame(Hello(role: role, client: "test", token: token))
  }
  private func link() throws -> Link {
    Link(
      deployment: Deployment(id: try Name("test"), buckets: 4, mode: .dev),
      sidecar: try Name("one"), incarnation: 1)
  }
  private func batch() throws -> DeltaBatch {
    DeltaBatch(bucket: 0, epoch: 1, previous: 0, entries: [try usage(1, op: 1)])
  }
  private mutating func becomeLinked() throws {
    _ = machine.received(try hello())
    _ = machine.received(try frame(try link()))
    machine.linkAccepted()
  }
  private func code(_ action: LedgerSessionMachine.Action) -> ErrorCode? {
    switch action {
    case .end(let error, _): error.code
    case .reply(.error(let error), _): error.code
    default: nil
    }
  }

  @Test mutating func helloThenLinkThenBatches() throws {
    #expect(machine.frameBytesMax == WireLimits.helloFrameBytesMax)
    #expect(
      machine.received(try hello())
        == .reply(.welcome(UInt32(LedgerSessionMachine.inFlightMax)), correlation: 1))
    #expect(machine.frameBytesMax == WireLimits.frameBytesMax)
    #expect(
      machine.received(try frame(try link(), correlation: 2)) == .link(try link(), correlation: 2))
    machine.linkAccepted()
    #expect(machine.isLinked)
    #expect(
      machine.received(try frame(try batch(), correlation: 3))
        == .apply(try batch(), correlation: 3))
    let inFlight = machine.answered(3)
    #expect(inFlight)
    let again = machine.answered(3)
    #expect(!again)
  }

  @Test mutating func wrongCredentialEndsTheConnection() throws {
    #expect(code(machine.received(try hello(token: "secreT"))) == .unauthenticated)
    #expect(machine.received(try hello()) == .none)
  }

  @Test(arguments: ["", "secre", "secrets"]) func credentialMustBeWhole(token: String) throws {
    var machine = LedgerSessionMachine(token: "secret")
    #expect(code(machine.received(try hello(token: token))) == .unauthenticated)
  }

  @Test mutating func otherRolesAreNotServed() throws {
    #expect(code(machine.received(try hello(role: .check))) == .forbidden)
  }

  @Test mutating func newerProtocolIsRefused() throws {
    let newer = Hello(
      role: .ledger, client: "test", token: "secret", versionMin: 2, versionMax: 3)
    #expect(code(machine.received(try frame(newer))) == .unsupportedVersion)
  }

  @Test mutating func nothingBeforeHello() throws {
    #expect(code(machine.received(try frame(try batch()))) == .helloRequired)
  }

  @Test mutating func toolReadsWithoutALink() throws {
    _ = machine.received(try hello())
    let query = QueryRequest(.status, body: [])
    #expect(
      machine.received(try frame(query, correlation: 2)) == .read(.query(query), correlation: 2))
    #expect(code(machine.received(try frame(try batch(), correlation: 3))) == .forbidden)
    #expect(
      machine.received(try frame(Ping(nonce: 9), correlation: 4))
        == .reply(.pong(Pong(nonce: 9)), correlation: 4))
  }

  @Test mutating func nothingButReadsWhileLinking() throws {
    _ = machine.received(try hello())
    _ = machine.received(try frame(try link()))
    #expect(code(machine.received(try frame(try batch(), correlation: 3))) == .forbidden)
    #expect(code(machine.received(try frame(try link(), correlation: 4))) == .badRequest)
  }

  @Test mutating func refusedLinkEnds() throws {
    _ = machine.received(try hello())
    _ = machine.received(try frame(try link(), correlation: 2))
    let error = ErrorReply(code: .deploymentMismatch, message: "buckets")
    #expect(machine.linkRefused(error, correlation: 2) == .end(error, correlation: 2))
    #expect(machine.received(try frame(try batch(), correlation: 3)) == .none)
  }

  @Test mutating func pushesOfALink() throws {
    try becomeLinked()
    let recover = Recover(bucket: 0, epoch: 1, metaEpoch: 0, metaSequence: 0)
    #expect(machine.received(try frame(recover, correlation: 0)) == .recover(recover))
    let present = Present(bucket: 0, epoch: 1, entries: [])
    #expect(
      machine.received(try frame(present, correlation: 0, flags: .more))
        == .present(present, isLast: false))
    #expect(
      machine.received(try frame(present, correlation: 0)) == .present(present, isLast: true))
  }

  @Test mutating func requestsInFlightAreBounded() throws {
    try becomeLinked()
    for id in 10..<(10 + UInt64(LedgerSessionMachine.inFlightMax)) {
      #expect(code(machine.received(try frame(try batch(), correlation: id))) == nil)
    }
    #expect(code(machine.received(try frame(try batch(), correlation: 900))) == .overloaded)
    let inFlight = machine.answered(10)
    #expect(inFlight)
    #expect(code(machine.received(try frame(try batch(), correlation: 901))) == nil)
  }

  @Test mutating func correlationIdInUseIsFatal() throws {
    try becomeLinked()
    _ = machine.received(try frame(try batch(), correlation: 10))
    #expect(code(machine.received(try frame(try batch(), correlation: 10))) == .badFrame)
    #expect(machine.received(try frame(try batch(), correlation: 11)) == .none)
  }

  @Test mutating func drainingAnswersWhatWasTakenAndRefusesTheRest() throws {
    try becomeLinked()
    _ = machine.received(try frame(try batch(), correlation: 10))
    let isEmpty = machine.drain()
    #expect(!isEmpty)
    #expect(code(machine.received(try frame(try batch(), correlation: 11))) == .draining)
    let inFlight = machine.answered(10)
    #expect(inFlight)
    #expect(machine.isIdle)
  }

  @Test mutating func framesOfTheDataPathAreForbidden() throws {
    try becomeLinked()
    let request = AdminRequest(.status, body: [])
    #expect(code(machine.received(try frame(request, correlation: 5))) == .forbidden)
  }

  @Test mutating func brokenStreamEnds() throws {
    try becomeLinked()
    #expect(code(machine.broken(.fatal(.badFrame, "wrong magic"))) == .badFrame)
    #expect(machine.broken(.fatal(.badFrame, "wrong magic")) == .none)
  }

  @Test mutating func unknownOpcodeIsRefusedNotFatal() throws {
    try becomeLinked()
    var unknown = try frame(Ping(nonce: 1), correlation: 5)
    unknown.header.rawOpcode = 0x7F
    #expect(code(machine.received(unknown)) == .unknownOpcode)
    #expect(machine.isLinked)
  }
}
