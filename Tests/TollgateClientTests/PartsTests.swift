// The small parts: endpoints, pauses, alarms, verdicts, words.

import Testing
import TollgateTesting
import TollgateWire

@testable import TollgateClient

@Suite(.blocking) struct PartsTests {
  @Test(arguments: [
    ("unix:/run/tollgate.sock", Endpoint.unix("/run/tollgate.sock")),
    ("127.0.0.1:7300", .tcp(host: "127.0.0.1", port: 7300)),
    ("[::1]:7300", .tcp(host: "::1", port: 7300)),
  ])
  func endpointsAreReadAndWritten(text: String, endpoint: Endpoint) throws {
    #expect(try Endpoint(text) == endpoint)
    #expect(endpoint.description == text)
  }

  @Test(arguments: ["", "unix:", "host", "host:", "host:0", "host:65536", ":7300", "host:x"])
  func badEndpointsAreRefused(text: String) {
    #expect(throws: InvalidEndpoint.self) { _ = try Endpoint(text) }
  }

  @Test func pausesStayWithinTheirBounds() {
    var jitter = Jitter(seed: 9)
    let pause = Pause(first: 10, longest: 1000)
    for attempt in 0..<100 {
      let ceiling = min(Int64(10) << Int64(min(attempt, 10)), 1000)
      let length = pause.length(attempt: attempt, using: &jitter)
      #expect(length >= ceiling - ceiling / 2 && length <= ceiling)
    }
  }

  @Test func alarmsRingInOrderAndForgetTheDead() {
    var alarms = Alarms()
    for token in 1...500 as ClosedRange<UInt64> {
      alarms.set(token, at: MonotonicTime(nanoseconds: Int64(1000 - token)))
    }
    #expect(alarms.popDue(MonotonicTime(nanoseconds: 499)) == nil)
    #expect(alarms.popDue(MonotonicTime(nanoseconds: 500)) == 500)
    alarms.compact(live: 1) { $0 == 7 }
    #expect(alarms.count == 1)
    #expect(alarms.next == MonotonicTime(nanoseconds: 993))
  }

  @Test func durationsAreCutToTheirRange() {
    #expect(Duration.seconds(2).nanoseconds(in: 0...10) == 10)
    #expect(Duration.seconds(-2).nanoseconds(in: 1...10) == 1)
    #expect(Duration.seconds(Int64.max).nanoseconds(in: 1...10) == 10)
    #expect(Duration.seconds(Int64.min).nanoseconds(in: 1...10) == 1)
    #expect(Duration.microseconds(3).nanoseconds(in: 0...Int64.max) == 3000)
  }

  /// PROTOCOL 7.4: these, and no others, say that the request may have been applied, or that the
  /// same id may be sent again.
  @Test func verdictsFollowTheProtocol() {
    #expect(
      ErrorCode.allCases.filter { Verdict($0) == .unknown } == [.outcomeUnknown, .internalError])
    #expect(
      ErrorCode.allCases.filter { Verdict($0) == .retry }
        == [.overloaded, .unavailable, .draining, .notReady])
  }

  @Test func failuresSayWhatHappened() {
    #expect(
      TollgateError.rejected(.forbidden, message: "no").description == "rejected: FORBIDDEN: no")
    #expect(TollgateError.notSent(.queueFull).description.hasPrefix("not sent: "))
    #expect(
      TollgateError.outcomeUnknown(operation(1)).description.hasSuffix(operation(1).hex))
  }

  @Test func boundsFitEachOther() {
    let settings = ClientMachine.Settings(
      ClientConfiguration(endpoints: [.unix("x")]))
    // The largest answer to a full frame fits what the client reads.
    let answerBytes = 2 + 2 + 2 + 1 + 1 + 8 * 4 + 1 + 65 + 1 + 16 * (1 + 8 * 4 + 65)
    #expect(256 * answerBytes + FrameHeader.bytes + 4 <= WireLimits.frameBytesMax)
    #expect(settings.recordsPerFrameMax <= 256)
    #expect(settings.owedTimeout / 1_000_000 <= Int64(WireLimits.deadlineMillisecondsMax))
  }
}
