// The client as a value: every call from acceptance to its one completion, every connection from
// dialling to its end, the retry rules, and the failure policies. No channel, no clock, no
// randomness but a seeded one, no logging. In: an event and the time. Out: effects, in order.
//
// A call is a *token* here. It is `queued`, `resting` before another attempt, or `sent`; it leaves
// the table exactly when its completion is put among the effects. What was sent and not answered
// keeps its slot in the connection, so a late answer finds no token and is dropped.
//
// Four files more hold the rest: +Calls (a call's life), +Links (connections), +Homes (operations
// that one sidecar alone knows of), +Owed (POST, CANCEL and SETTLE that outlive their calls).

internal import DequeModule
internal import TollgateWire

struct ClientMachine {
  typealias Token = UInt64
  typealias ConnectionID = UInt64

  struct Settings: Hashable, Sendable {
    var endpoints = 1
    var inFlightMax = 1024
    var recordsPerFrameMax = 128
    var unpostedMax = 10_000
    var uncancelledMax = 10_000
    var unsettledMax = 10_000
    /// Milliseconds.
    var dedupeWindow: Int64 = 3_600_000
    var appliesFailurePolicies = true
    /// Nanoseconds.
    var connectTimeout: Int64 = 1_000_000_000
    /// Nanoseconds a POST or CANCEL awaits its answer before it is sent again.
    var owedTimeout: Int64 = 5_000_000_000
    var reconnect = Pause(first: 20_000_000, longest: 2_000_000_000)
    var retry = Pause(first: 2_000_000, longest: 250_000_000)
    var seed: UInt64 = 0
  }

  struct Now: Hashable, Sendable {
    var monotonic: MonotonicTime
    var wall: WallTime
  }

  struct Call {
    enum Phase: Hashable {
      case queued
      case resting(until: MonotonicTime)
      case sent
      /// For a sidecar that the link is not with (+Homes).
      case away
    }

    let token: Token
    /// A settle may become a post, under the same id.
    var ask: Ask
    /// Calls made together may share a frame.
    let group: UInt64
    let deadline: MonotonicTime
    var phase = Phase.queued
    var sends = 0
    var refusals = 0
    /// An attempt was sent and what became of it is not known.
    var mayBeApplied = false
    /// Where it was sent first, and whether only that one knows of it.
    var home: Home?
    var isOfSidecarScope = false

    init(token: Token, _ ask: Ask, group: UInt64, deadline: MonotonicTime) {
      self.token = token
      self.ask = ask
      self.group = group
      self.deadline = deadline
    }
  }

  enum Shipment: Hashable, SlotContent {
    case calls([Token])
    case posts([OperationID], number: UInt64)
    case cancels([OperationID], number: UInt64)
    case settles([OperationID], number: UInt64)

    var recordCount: Int {
      switch self {
      case .calls(let tokens): tokens.count
      case .posts(let ids, _), .cancels(let ids, _), .settles(let ids, _): ids.count
      }
    }
  }

  struct Outgoing: Hashable {
    var opcode: Opcode
    var flags: FrameFlags = []
    var deadlineMilliseconds: UInt32
    var content: FrameRecords
    var shipment: Shipment
  }

  enum Effect: Equatable {
    case connect(ConnectionID, endpoint: Int)
    case send(ConnectionID, Outgoing)
    /// Ends a connection; its `closed` event still comes.
    case close(ConnectionID)
    case complete(Token, Result<Decision, TollgateError>)
    /// A sidecar has welcomed the client.
    case ready
    case refusedPost(Record, String)
    case refusedSettle(SettleRecord, String)
    /// What this final settle says is told without its hold. Should the hold come back, nobody else
    /// would end it: it is released.
    case letGo(SettleRecord)
    /// Stopped, and nothing is open, outstanding or owed.
    case idle
  }

  enum Life: Hashable {
    case new
    case running
    /// No new calls; what is outstanding and owed is still worked on.
    case stopping
    case stopped
  }

  let settings: Settings
  var life = Life.new
  var effects: [Effect] = []
  var random: Jitter
  var statistics = ClientStatistics()

  var calls: [Token: Call] = [:]
  /// Final settles that are owed as posts, by their ids.
  var unheld: [OperationID: SettleRecord] = [:]
  /// Tokens to send, in order. May name calls that ended.
  var queue: Deque<Token> = []
  var alarms = Alarms()

  var link = Link.none
  var connections: [ConnectionID: Connection] = [:]
  var lastConnection: ConnectionID = 0
  /// The endpoint to dial next.
  var cursor = 0
  /// Attempts in a row that failed.
  var failures = 0
  /// Features whose operations only the sidecar knows that was asked first.
  var sidecarFeatures: Set<Name> = []
  /// Calls for sidecars that the link is not with.
  var waiting: [Name: Waiting] = [:]
  /// Every endpoint failed in turn since one last worked.
  var isDown = false
  var lastTrouble = ""

  var book: FallbackBook
  var doubtful: DoubtfulIDs
  var lastShipment: UInt64 = 0

  init(settings: Settings) {
    self.settings = settings
    random = Jitter(seed: settings.seed)
    book = FallbackBook(
      unpostedMax: settings.unpostedMax, uncancelledMax: settings.uncancelledMax,
      unsettledMax: settings.unsettledMax)
    doubtful = DoubtfulIDs(capacity: settings.uncancelledMax)
  }

  var appliesPolicies: Bool { settings.appliesFailurePolicies && book.knowsPolicies }

  mutating func takeEffects() -> [Effect] {
    let taken = effects
    effects.removeAll(keepingCapacity: true)
    return taken
  }

  /// When `wake` wants to be called next.
  var nextWake: MonotonicTime? {
    var wake = earlier(earlier(alarms.next, link.wake), errandsWake)
    guard openLink != nil else { return wake }
    for owed in [book.posts.wake, book.cancels.wake, book.settles.wake] {
      wake = earlier(wake, owed)
    }
    return wake
  }

  private func earlier(_ a: MonotonicTime?, _ b: MonotonicTime?) -> MonotonicTime? {
    guard let a, let b else { return a ?? b }
    return min(a, b)
  }

  /// A snapshot with its levels.
  var snapshot: ClientStatistics {
    var snapshot = statistics
    snapshot.outstanding = calls.count
    snapshot.unposted = book.posts.count
    snapshot.uncancelled = book.cancels.count
    snapshot.unsettled = book.settles.count
    snapshot.isConnected = openLink != nil
    return snapshot
  }

  // MARK: life

  mutating func start(_ now: Now) {
    precondition(life == .new, "a client starts once")
    life = .running
    dial(now)
  }

  /// Takes no more calls.
  mutating func stop(_ now: Now) {
    switch life {
    case .new: life = .stopped
    case .running: life = .stopping
    case .stopping, .stopped: break
    }
    finishIfIdle()
  }

  /// The grace has passed: whatever is outstanding ends now, and every connection.
  mutating func abandon(_ now: Now) {
    life = .stopped
    for token in calls.keys.sorted() { if let call = calls[token] { giveUp(call, .notRunning) } }
    link = .none
    for id in connections.keys.sorted() { effects.append(.close(id)) }
  }

  mutating func finishIfIdle() {
    guard life == .stopping, calls.isEmpty, !book.owes else { return }
    life = .stopped
    link = .none
    for id in connections.keys.sorted() { effects.append(.close(id)) }
    effects.append(.idle)
  }

  /// What the alarms were set for. Call `pump` afterwards, as after every event.
  mutating func wake(_ now: Now) {
    while let token = alarms.popDue(now.monotonic) {
      guard let call = calls[token] else { continue }
      if call.deadline <= now.monotonic {
        expire(call, now)
      } else if case .resting(let until) = call.phase, until <= now.monotonic {
        calls[token]?.phase = .queued
        queue.append(token)
      }
    }
    wakeLink(now)
    wakeErrands(now)
    wakeOwed(now)
  }

  /// Sends what may be sent now.
  mutating func pump(_ now: Now) {
    if let id = openLink {
      pumpOwed(id, now)
      pumpCalls(id, now)
    }
    pumpErrands(now)
    alarms.compact(live: calls.count) { [calls] in calls[$0] != nil }
    if queue.count > 2 * calls.count + 64 {
      queue = Deque(queue.filter { [calls] in calls[$0]?.phase == .queued })
    }
    finishIfIdle()
  }
}
