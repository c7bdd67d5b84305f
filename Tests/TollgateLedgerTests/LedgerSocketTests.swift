// The ledger's sockets: a path that is another's is not taken, and who says nothing is let go.

import Foundation
import Logging
import NIOCore
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateLedger

@Suite(.serialized, .blocking) struct LedgerSocketTests {
  @Test func theSocketOfALivingLedgerIsNotTaken() async throws {
    let ledger = try await RunningLedger.start()
    let other = try TemporaryDirectory("tg-ledger")
    await #expect(throws: LedgerError.self) {
      try await runLedger(
        configuration: LedgerConfiguration(
          database: other.file("ledger.sqlite"), unix: ledger.directory.file("s")),
        logger: .quiet, stop: LedgerStop()
      ) { _ in Issue.record("it serves") }
    }
    // The first is still reached on its path.
    let welcome = try ledger.connect().request(
      Hello(role: .ledger, client: "test", token: "secret"))
    #expect(welcome.header.opcode == .welcome)
    try await ledger.finish()
    #expect(!FileManager.default.fileExists(atPath: ledger.directory.file("s")))
  }

  @Test func aSocketLeftByAKilledLedgerIsReplaced() async throws {
    let directory = try TemporaryDirectory("tg-ledger")
    let first = try #require(SocketLeftover(directory.file("s")))
    first.abandon()
    let ledger = try await RunningLedger.start(in: directory)
    _ = try ledger.sidecar("one")
    try await ledger.finish()
  }

  @Test func aFileThatIsNoSocketIsLeftAlone() async throws {
    let directory = try TemporaryDirectory("tg-ledger")
    _ = try directory.write("s", "precious")
    await #expect(throws: LedgerError.self) { _ = try await RunningLedger.start(in: directory) }
    #expect(try String(contentsOfFile: directory.file("s"), encoding: .utf8) == "precious")
  }

  @Test func aStopLeavesAnothersSocketAlone() async throws {
    let ledger = try await RunningLedger.start()
    let path = ledger.directory.file("s")
    try FileManager.default.removeItem(atPath: path)
    let other = try #require(SocketLeftover(path))
    try await ledger.finish()
    #expect(FileManager.default.fileExists(atPath: path))
    other.abandon()
  }

  // MARK: - Silence

  private var quick: LedgerSilence {
    var silence = LedgerSilence()
    silence.helloMilliseconds = 200
    silence.pingMilliseconds = 200
    silence.closeMilliseconds = 500
    return silence
  }

  @Test func whoNeverSaysHelloIsClosed() async throws {
    let ledger = try await RunningLedger.start(silence: quick)
    for endpoint in [true, false] {
      let silent = try ledger.connect(unix: endpoint)
      #expect(throws: TestSidecar.Closed.self) { _ = try silent.receive() }
    }
    try await ledger.finish()
  }

  @Test func aLinkThatIsSilentIsPingedAndThenClosed() async throws {
    let ledger = try await RunningLedger.start(silence: quick)
    let gone = try ledger.sidecar("one")
    #expect(try gone.receive().header.opcode == .ping)
    #expect(throws: TestSidecar.Closed.self) { _ = try gone.receive() }
    // Its place is free: the same sidecar links again.
    _ = try ledger.sidecar("one", incarnation: 2)
    try await ledger.finish()
  }

  @Test func aLinkThatAnswersStays() async throws {
    // Long enough for a machine that is busy; five pings are longer.
    var silence = LedgerSilence()
    silence.helloMilliseconds = 800
    silence.pingMilliseconds = 800
    silence.closeMilliseconds = 3_000
    let ledger = try await RunningLedger.start(silence: silence)
    let alive = try ledger.sidecar("one")
    for _ in 0..<5 {
      let frame = try alive.receive()
      #expect(frame.header.opcode == .ping)
      try alive.send(
        Pong(nonce: try Ping.decode(frame).nonce), correlation: frame.header.correlation)
    }
    try await ledger.finish()
  }
}

extension Logger {
  fileprivate static var quiet: Logger { Logger(label: "test") { _ in SwiftLogNoOpLogHandler() } }
}

/// A listening Unix socket of somebody else.
private final class SocketLeftover {
  private let descriptor: Int32

  init?(_ path: String) {
    descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    let bytes = Array(path.utf8)
    guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else { return nil }
    unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: bytes) }
    let bound = unsafe withUnsafePointer(to: &address) { pointer in
      unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        unsafe bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size)) == 0
      }
    }
    guard bound, listen(descriptor, 1) == 0 else { return nil }
  }

  func abandon() { close(descriptor) }
}
