// Random events against the client machine, beside a naive sidecar, with the promises as oracle:
// every call completes exactly once; no allowance is exceeded; everything let through is posted;
// the charge of every id is what its caller was told; what was used of a reservation is charged
// once, though the sidecar loses holds and records.

import Testing
import TollgateTesting
import TollgateWire

@testable import TollgateClient

/// What a sidecar knows: one verdict per id, given once, taken back by CANCEL.
private struct Register {
  private enum Entry { case allowed, denied, cancelled }
  private var entries: [OperationID: Entry] = [:]

  /// Effects of settles, and of what they became.
  private(set) var told: [OperationID: Int] = [:]
  private var settled: Set<OperationID> = []

  func isCharged(_ id: OperationID) -> Bool { entries[id] == .allowed }
  func knows(_ id: OperationID) -> Bool { entries[id] != nil }

  /// `isKnown`: the hold has not been lost.
  mutating func receive(_ settle: SettleRecord, isKnown: Bool) -> DecisionRecord {
    if settled.contains(settle.id) { return .decision(decision(.settled)) }
    // What was posted under the id stands on record; a settle that comes later is another body.
    if entries[settle.id] != nil { return refusal(.idempotencyMismatch) }
    guard isKnown else { return refusal(.reservationUnknown) }
    settled.insert(settle.id)
    told[settle.id, default: 0] += 1
    return .decision(decision(.settled))
  }

  mutating func receive(_ opcode: Opcode, _ record: Record, allows: Bool) -> DecisionRecord {
    switch opcode {
    case .consume:
      let entry = entries[record.id] ?? (allows ? .allowed : .denied)
      entries[record.id] = entry
      switch entry {
      case .allowed: return .decision(decision())
      case .denied: return .decision(decision(.quotaExceeded))
      case .cancelled: return .decision(decision(.cancelled))
      }
    case .post:
      if settled.contains(record.id) { return refusal(.idempotencyMismatch) }
      if entries[record.id] != .allowed, told[record.id] == nil { told[record.id] = 1 }
      entries[record.id] = .allowed
      return .decision(decision(.allowedPosted))
    case .cancel:
      entries[record.id] = .cancelled
      return .decision(decision(.cancelled))
    default: return .decision(decision())
    }
  }
}

private struct World {
  struct Flight {
    var connection: UInt64
    var outgoing: ClientMachine.Outgoing
    /// The sidecar has dealt with it; only the way back is left.
    var answers: [DecisionRecord]?
  }

  var machine: ClientMachine
  var random: SeededRandom
  /// What is in the store: known to every sidecar.
  var register = Register()
  /// What each sidecar alone knows of, where operations are of scope `sidecar`.
  var own = [Register(), Register()]
  let isScoped: Bool
  var endpoints: [UInt64: Int] = [:]
  var time: Int64 = 0
  var dialling: [UInt64] = []
  var open: [UInt64] = []
  var flights: [Flight] = []
  var completed: [UInt64: Result<Decision, TollgateError>] = [:]
  var consumed: [UInt64: OperationID] = [:]
  var used: [UInt64: OperationID] = [:]
  var lastToken: UInt64 = 0

  let allowance: Int64 = 6

  init(seed: SeededRandom, isScoped: Bool = false) {
    random = seed
    self.isScoped = isScoped
    machine = ClientMachine(
      settings: ClientMachine.Settings(
        endpoints: 2, inFlightMax: 4, recordsPerFrameMax: 3, unpostedMax: 8, uncancelledMax: 4,
        connectTimeout: 20_000_000, owedTimeout: 30_000_000,
        reconnect: Pause(first: 1_000_000, longest: 8_000_000),
        retry: Pause(first: 1_000_000, longest: 4_000_000), seed: random.next()))
  }

  var now: ClientMachine.Now { .at(time) }

  mutating func settle() {
    while true {
      machine.pump(now)
      let effects = machine.takeEffects()
      if effects.isEmpty { return }
      for effect in effects { perform(effect) }
    }
  }

  mutating func perform(_ effect: ClientMachine.Effect) {
    switch effect {
    case .connect(let id, let endpoint):
      dialling.append(id)
      endpoints[id] = endpoint
    case .send(let id, let outgoing):
      if open.contains(id) {
        flights.append(Flight(connection: id, outgoing: outgoing))
      } else {
        machine.undelivered(outgoing.shipment)
      }
    case .close(let id): end(id)
    case .complete(let token, let result):
      #expect(completed[token] == nil, "call \(token) completed twice")
      completed[token] = result
    case .ready, .refusedPost, .refusedSettle, .letGo, .idle: break
    }
  }

  mutating func end(_ id: UInt64) {
    guard dialling.contains(id) || open.contains(id) else { return }
    dialling.removeAll { $0 == id }
    open.removeAll { $0 == id }
    let orphans = flights.filter { $0.connection == id }.map(\.outgoing.shipment)
    flights.removeAll { $0.connection == id }
    machine.closed(id, orphans: orphans, trouble: "cut", now)
  }

  mutating func arrive(_ index: Int, healthy: Bool) {
    guard flights[index].answers == nil else { return }
    let outgoing = flights[index].outgoing
    if case .settles(let records) = outgoing.content {
      flights[index].answers = records.map { record in
        if !healthy, random.chance(0.15) { return refusal(.overloaded) }
        let answer = register.receive(record, isKnown: random.chance(0.6))
        return !healthy && random.chance(0.1) ? refusal(.outcomeUnknown) : answer
      }
      return
    }
    let endpoint = endpoints[flights[index].connection] ?? 0
    flights[index].answers = outgoing.records.map { record in
      if !healthy, random.chance(0.15) { return refusal(.overloaded) }
      let allows = healthy || random.chance(0.8)
      let isOwn = isScoped && (outgoing.opcode == .consume || own[endpoint].knows(record.id))
      let answer =
        isOwn
        ? own[endpoint].receive(outgoing.opcode, record, allows: allows)
        : register.receive(outgoing.opcode, record, allows: allows)
      if !healthy, random.chance(0.1) { return refusal(.outcomeUnknown) }
      return answer
    }
  }

  mutating func reply(_ index: Int) {
    guard let answers = flights[index].answers else { return }
    let flight = flights.remove(at: index)
    machine.answered(flight.connection, flight.outgoing.shipment, answers, now)
  }

  mutating func welcome(_ id: UInt64) {
    dialling.removeAll { $0 == id }
    open.append(id)
    var welcome = makeWelcome(inFlightMax: 3, ["a": .open(allowance: allowance), "b": .closed])
    welcome.sidecar = name("s\(endpoints[id] ?? 0)")
    if isScoped { welcome.sidecarFeatures = [name("a"), name("b")] }
    machine.welcomed(id, welcome, now)
  }

  /// How often it was counted.
  func charges(_ id: OperationID) -> Int {
    ([register] + own).count { $0.isCharged(id) }
  }

  mutating func submit() {
    let group = lastToken + 1
    let deadline = now.monotonic + Int64.random(in: 1...30, using: &random) * 1_000_000
    for _ in 0..<Int.random(in: 1...4, using: &random) {
      lastToken += 1
      let consumes = random.chance(0.8)
      let record = Record(
        id: OperationID(high: UInt64(now.wall.milliseconds) << 16, low: lastToken),
        subject: subject("acme"),
        items: [item(random.chance(0.6) ? "a" : "b", Int64.random(in: 1...2, using: &random))])
      if consumes { consumed[lastToken] = record.id }
      machine.submit(
        ClientMachine.Call(
          token: lastToken, consumes ? .consume(record) : .check(record), group: group,
          deadline: deadline),
        now)
    }
  }

  mutating func settleSome() {
    lastToken += 1
    let record = SettleRecord(
      id: OperationID(high: UInt64(now.wall.milliseconds) << 16, low: lastToken),
      subject: subject("acme"), reservation: operation(lastToken), isFinal: random.chance(0.5),
      items: [item("b", 1)])
    used[lastToken] = record.id
    let deadline = now.monotonic + Int64.random(in: 1...30, using: &random) * 1_000_000
    machine.submit(
      ClientMachine.Call(token: lastToken, .settle(record), group: lastToken, deadline: deadline),
      now)
  }

  mutating func step() {
    switch Int.random(in: 0..<100, using: &random) {
    case 0..<24: submit()
    case 24..<30: settleSome()
    case 30..<50:
      if let index = flights.indices.randomElement(using: &random) { arrive(index, healthy: false) }
    case 50..<65:
      if let index = flights.indices.randomElement(using: &random) { reply(index) }
    case 65..<72: if let id = dialling.randomElement(using: &random) { welcome(id) }
    case 72..<75: if let id = dialling.randomElement(using: &random) { end(id) }
    case 75..<78: if let id = open.randomElement(using: &random) { end(id) }
    case 78..<80:
      if let id = open.randomElement(using: &random) {
        machine.wentAway(id, GoAway(code: .draining, graceMilliseconds: 9, message: ""), now)
      }
    case 80..<83: machine.cancel(UInt64.random(in: 0...lastToken, using: &random))
    case 83..<86:
      if let id = open.randomElement(using: &random) {
        machine.writabilityChanged(id, random.chance(0.6))
      }
    default:
      time += Int64.random(in: 1...6, using: &random)
      machine.wake(now)
    }
    settle()
  }

  /// A healthy sidecar from here on, until nothing is outstanding or owed.
  mutating func heal() {
    for _ in 0..<10_000 {
      if machine.calls.isEmpty, !machine.book.owes { return }
      while let id = dialling.first {
        welcome(id)
        settle()
      }
      for id in open { machine.writabilityChanged(id, true) }
      while !flights.isEmpty {
        arrive(0, healthy: true)
        reply(0)
        settle()
      }
      time += 1
      machine.wake(now)
      settle()
    }
    Issue.record("never at rest")
  }
}

@Suite(.blocking) struct RandomTranscripts {
  @Test(arguments: [false, true])
  func everyCallEndsOnceAndIsChargedAsItsCallerWasTold(isScoped: Bool) {
    var random = SeededRandom.fromEnvironment("client machine")
    var errands = 0
    for _ in 0..<60 {
      var world = World(seed: random.fork(), isScoped: isScoped)
      world.machine.start(world.now)
      world.settle()
      for _ in 0..<1500 {
        world.step()
        let machine = world.machine
        let posts = machine.book.posts.records.filter { !world.used.values.contains($0.id) }
        #expect(posts.count <= 8)
        #expect(machine.book.cancels.count <= 4)
        let owed = posts.flatMap(\.items).reduce(0) { $0 + $1.amount }
        #expect(owed <= world.allowance, "more let through than allowed")
        #expect(machine.queue.count <= 2 * machine.calls.count + 64)
        #expect(machine.alarms.count <= 4 * machine.calls.count + 64)
        #expect(machine.connections.values.allSatisfy { $0.framesInFlight >= 0 })
        #expect(machine.waiting.count <= 2)
        errands += machine.waiting.count
      }
      world.heal()
      expectCharges(world)
    }
    #expect(isScoped == (errands > 0))
  }

  private func expectCharges(_ world: World) {
    #expect(world.completed.count == Int(world.lastToken))
    for (token, id) in world.used {
      let charged = world.register.told[id] ?? 0
      switch world.completed[token] {
      case .success, .failure(.outcomeUnknown): #expect(charged == 1, "use \(id)")
      case .failure(.notSent), .failure(.rejected), nil: #expect(charged == 0, "use \(id)")
      }
    }
    for (token, id) in world.consumed {
      let charged = world.charges(id)
      switch world.completed[token] {
      case .success(let decision):
        #expect(
          charged == (decision.isAllowed ? 1 : 0),
          "operation \(id): told \(decision.reason.name), charged \(charged) times")
      case .failure(.notSent), .failure(.rejected):
        #expect(charged == 0, "operation \(id): said not to be applied")
      case .failure(.outcomeUnknown), nil: #expect(charged <= 1, "operation \(id)")
      }
    }
  }
}
