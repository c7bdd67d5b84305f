// A client machine under test, with the steps of a transcript in short form.

import Testing
import TollgateWire

@testable import TollgateClient

struct Transcript {
  var machine: ClientMachine
  private(set) var time: Int64 = 0

  init(_ change: (inout ClientMachine.Settings) -> Void = { _ in }) {
    var settings = ClientMachine.Settings()
    settings.seed = 1
    change(&settings)
    machine = ClientMachine(settings: settings)
  }

  var now: ClientMachine.Now { .at(time) }

  /// Pumps as the driver does, and returns all effects.
  mutating func effects() -> [ClientMachine.Effect] {
    machine.pump(now)
    return machine.takeEffects()
  }

  /// Lets `milliseconds` pass, waking the machine at each instant it asked for.
  mutating func pass(_ milliseconds: Int64) -> [ClientMachine.Effect] {
    let end = time + milliseconds
    var all: [ClientMachine.Effect] = []
    while let wake = machine.nextWake, wake.nanoseconds <= end * 1_000_000 {
      time = max(time, (wake.nanoseconds + 999_999) / 1_000_000)
      machine.wake(now)
      all += effects()
    }
    time = end
    machine.wake(now)
    return all + effects()
  }

  mutating func start() -> [ClientMachine.Effect] {
    machine.start(now)
    return effects()
  }

  mutating func welcome(
    _ id: UInt64 = 1, _ message: Welcome = makeWelcome()
  ) -> [ClientMachine.Effect] {
    machine.welcomed(id, message, now)
    return effects()
  }

  /// Started and welcomed on connection 1.
  static func open(
    _ message: Welcome = makeWelcome(), _ change: (inout ClientMachine.Settings) -> Void = { _ in }
  ) -> Transcript {
    var transcript = Transcript(change)
    #expect(transcript.start() == [.connect(1, endpoint: 0)])
    #expect(transcript.welcome(1, message) == [.ready])
    return transcript
  }

  mutating func submit(
    _ token: UInt64, consumes: Bool = true, _ record: Record? = nil, group: UInt64? = nil,
    within milliseconds: Int64 = 1000
  ) -> [ClientMachine.Effect] {
    let record = record ?? TollgateClientTests.record(token)
    return ask(
      token, consumes ? .consume(record) : .check(record), group: group, within: milliseconds)
  }

  mutating func ask(
    _ token: UInt64, _ ask: Ask, group: UInt64? = nil, within milliseconds: Int64 = 1000
  ) -> [ClientMachine.Effect] {
    machine.submit(
      ClientMachine.Call(
        token: token, ask, group: group ?? token,
        deadline: now.monotonic + milliseconds * 1_000_000), now)
    return effects()
  }

  mutating func answer(
    _ connection: UInt64 = 1, _ shipment: ClientMachine.Shipment, _ records: DecisionRecord...
  ) -> [ClientMachine.Effect] {
    machine.answered(connection, shipment, records, now)
    return effects()
  }

  mutating func close(
    _ connection: UInt64 = 1, _ orphans: ClientMachine.Shipment..., trouble: String = "lost"
  ) -> [ClientMachine.Effect] {
    machine.closed(connection, orphans: orphans, trouble: trouble, now)
    return effects()
  }
}

extension Array where Element == ClientMachine.Effect {
  var sent: [ClientMachine.Outgoing] {
    compactMap { if case .send(_, let outgoing) = $0 { outgoing } else { nil } }
  }

  var completed: [UInt64: Result<Decision, TollgateError>] {
    var all: [UInt64: Result<Decision, TollgateError>] = [:]
    for case .complete(let token, let result) in self { all[token] = result }
    return all
  }

  /// Whose holds are let go.
  var released: [SettleRecord] {
    compactMap { if case .letGo(let settle) = $0 { settle } else { nil } }
  }

  var dialled: [Int] {
    compactMap { if case .connect(_, let endpoint) = $0 { endpoint } else { nil } }
  }
}

extension Array where Element == ClientMachine.Outgoing {
  /// The first frame's; an issue, and an empty one, where nothing was sent.
  var shipment: ClientMachine.Shipment {
    if let first { return first.shipment }
    Issue.record("nothing was sent")
    return .calls([])
  }
}

func calls(_ tokens: UInt64...) -> ClientMachine.Shipment { .calls(tokens) }

func allowed() -> DecisionRecord { .decision(decision()) }

func refusal(_ code: ErrorCode) -> DecisionRecord { .error(code, message: "no") }

extension ClientMachine.Outgoing {
  /// Those of CHECK … CANCEL; none of a frame of another kind.
  var records: [Record] {
    if case .operations(let records) = content { records } else { [] }
  }

  init(
    opcode: Opcode, deadlineMilliseconds: UInt32, records: [Record],
    shipment: ClientMachine.Shipment
  ) {
    self.init(
      opcode: opcode, deadlineMilliseconds: deadlineMilliseconds, content: .operations(records),
      shipment: shipment)
  }
}
