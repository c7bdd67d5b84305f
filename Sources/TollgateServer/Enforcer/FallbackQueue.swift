// What an open failure policy let through, waiting to be posted under the same operation ids
// (promise 3), and remembered until then so that a retry gets the same answer (promise 4). Shared
// by all event loops of a sidecar.
//
//   admit ─▶ to post ──take──▶ being posted ─┬─ done ─▶ settled: gone, Redis has it
//              │  ▲ ▲                        ├─ again, later ─▶ waits, and is taken again
//           cancel │ └───────────────────────┘
//              ▼   │                         └─ refused ─▶ parked: remembered, and sent again only
//              │   │                                       where an operator says so
//          to cancel ─take─▶ being cancelled ── done ─▶ settled
//
// A cancel that comes while the post is under way turns the entry, and the entry is left only by a
// CANCEL sent after the answer to that post came or was given up. So whichever of the two Redis
// sees first, the last word is CANCEL's: where the post was counted it is taken back, where it was
// not the id is marked. (A post whose connection died before its answer may reach Redis later
// still; it finds the caller's CANCEL on record.)
//
// First come, first posted: entries are taken in the order of the time from which they may be. One
// that fails comes back later each time and so stands behind those that wait; where the store could
// not be asked about an account, one entry of that account probes while its others wait, so that an
// account that cannot be loaded holds up nobody else.
//
// The allowances of the outage stand beside the queue, under the same lock: they hold for the
// sidecar and not for each of its event loops, a retry of what was let through draws on none of
// them again, and they are whole again when the store has answered for every entry; one that waits
// for an operator, or is parked, does not hold them back.
//
// Bounded: entries by `operationsMax` and, in the journal, by bytes; full means the policy lets
// nothing more through. Parked ones by `refusedMax`; the oldest makes room, which is reported.

import Glibc
import HeapModule
import NIOConcurrencyHelpers
import NIOCore
import OrderedCollections
import Synchronization
import TollgateCore
import TollgateEngine

final class FallbackQueue: Sendable {
  struct Limits: Sendable {
    var operationsMax = 100_000
    var refusedMax = 1000
    /// Of entries and parked ones in the journal; the file takes twice as much at most.
    var journalBytesMax = 64 << 20
    /// Of no use any more in the journal, before it is rewritten.
    var journalWasteMax = 1 << 20

    /// The file's own ceiling: what is useful twice over, the waste, and lines behind them.
    var journalFileBytesMax: Int { 2 * journalBytesMax + 2 * journalWasteMax }
  }

  enum Intent: Sendable, Hashable { case post, cancel }

  /// What is to be sent to the store for an entry.
  struct Errand: Sendable, Hashable {
    var operation: FallbackOperation
    var intent: Intent
  }

  enum Admission: Equatable {
    /// Kept: it may be let through, and will be posted.
    case kept
    /// It is remembered already.
    case remembered(Answer)
    /// An allowance does not cover it.
    case exhausted(Name)
    /// The queue is full or the journal cannot be written.
    case full
  }

  enum Answer: Equatable {
    /// It was let through before under this id.
    case allowed
    /// It was, and its caller took it back.
    case cancelled
    /// Another body was let through under this id; what differs.
    case mismatch(String)
  }

  enum Cancellation: Equatable {
    /// Not here: what Redis says is the answer.
    case unknown
    case mismatch(String)
    /// It will not be posted, and Redis will be told; `isKept`: also after the process was killed.
    case annulled(isKept: Bool)
  }

  enum Resolution: Equatable {
    case settled
    case waits
    /// With the one that had to make room for it.
    case parked(FallbackRefusal, dropped: FallbackRefusal?)
  }

  struct Status: Sendable, Equatable {
    var pending = 0
    /// Of them: the store answered, and they wait for what it needs.
    var deferred = 0
    var refused = 0
    var journalBytes = 0
  }

  private struct Entry {
    var operation: FallbackOperation
    var intent = Intent.post
    /// The cancel is in the journal.
    var isCancelKept = false
    var isTaken = false
    var isDeferred = false
    var failures = 0
    /// Its bytes in the journal.
    var bytes = 0
    /// Its place in the line; a place with another number is an old one.
    var place: UInt64
  }

  private struct Place: Comparable {
    var due: NIODeadline
    var number: UInt64
    var id: OperationID

    static func < (a: Self, b: Self) -> Bool { (a.due, a.number) < (b.due, b.number) }
  }

  /// An account about which the store could not be asked.
  private struct Trouble {
    var until: NIODeadline
    var failures = 0
    /// The one entry that is under way since.
    var probe: OperationID?
  }

  private struct State: ~Copyable {
    var entries: [OperationID: Entry] = [:]
    var line = Heap<Place>()
    var places: UInt64 = 0
    var taken = 0
    var deferred = 0
    var troubles: [String: Trouble] = [:]
    var refused: OrderedDictionary<OperationID, FallbackRefusal> = [:]
    var journal: FallbackJournal?
    /// Of the journal, what would be written if it were written anew.
    var usefulBytes = 0
    var allowances: AllowanceBook
    var accounts: AccountCache
  }

  private let lock = NIOLock()
  // Safe: read and written in `withState` only, which holds the lock. (A box of swift-nio wants a
  // value that can be copied; the journal cannot.)
  private nonisolated(unsafe) var state: State
  /// Entries and parked ones: asked before the lock is, on the path of every request.
  private let remembered = Atomic<Int>(0)
  let limits: Limits
  /// Where whoever posts rests while nothing waits.
  let nap = Nap()

  static let firstPause = TimeAmount.milliseconds(50)
  /// Of an entry, and of an account, of which the store could not be asked.
  static let againPauseMax = TimeAmount.seconds(2)
  static let laterPauseMax = TimeAmount.seconds(60)
  /// How often those behind a probe look whether it was answered.
  static let probePause = TimeAmount.milliseconds(250)
  /// Places looked at in one `take`, so that the lock is not held for long.
  static let scanMax = 4096

  /// What the journal still holds is here again.
  init(
    limits: Limits, journal: consuming FallbackJournal?,
    accountsMax: Int = ServerConfiguration.Limits().accountsCachedMax, now: NIODeadline = .now()
  ) {
    self.limits = limits
    var state = State(
      allowances: AllowanceBook(entriesMax: limits.operationsMax),
      accounts: AccountCache(capacity: accountsMax))
    if var journal {
      for record in journal.recovered { Self.recover(record, into: &state, now: now) }
      journal.recovered = []
      state.journal = consume journal
    }
    let count = state.entries.count + state.refused.count
    unsafe self.state = state
    remembered.store(count, ordering: .releasing)
  }

  private func withState<Result>(_ body: (inout State) throws -> Result) rethrows -> Result {
    try lock.withLock { try unsafe body(&state) }
  }

  /// Whether any id is remembered here; one atomic read.
  var remembersAny: Bool { remembered.load(ordering: .acquiring) > 0 }

  /// Entries to be posted or cancelled.
  var count: Int { withState { $0.entries.count } }

  /// Entries for which the store has not answered yet.
  var owed: Int { withState { $0.entries.count - $0.deferred } }

  var status: Status {
    withState { state in
      Status(
        pending: state.entries.count, deferred: state.deferred, refused: state.refused.count,
        journalBytes: state.journal?.size ?? 0)
    }
  }

  /// The latest of the parked ones.
  func refusals(_ limit: Int) -> [FallbackRefusal] {
    withState { Array($0.refused.values.suffix(limit)) }
  }

  // MARK: - Requests

  /// What a request with this id is answered; nil: not remembered. A parked id with another body is
  /// left to the store, which has the record that the parked one was refused for.
  func answer(to operation: FallbackOperation) -> Answer? {
    withState { state in
      if let refusal = state.refused[operation.id] {
        return refusal.operation.difference(from: operation) == nil ? .allowed : nil
      }
      return Self.answer(to: operation, state)
    }
  }

  /// Takes the claims and keeps the operation, or does neither.
  func admit(
    _ operation: FallbackOperation, claims: [AllowanceBook.Claim], now: NIODeadline = .now()
  ) -> Admission {
    defer { nap.wake() }
    return withState { state in
      if let refusal = state.refused[operation.id] {
        let difference = refusal.operation.difference(from: operation)
        return .remembered(difference.map { .mismatch($0) } ?? .allowed)
      }
      if let answer = Self.answer(to: operation, state) { return .remembered(answer) }
      guard state.entries.count < limits.operationsMax else { return .full }
      if let refused = state.allowances.refusal(of: claims) { return .exhausted(refused.limit) }
      var bytes = 0
      if state.journal != nil {
        let line = FallbackRecord.admitted(operation).line
        bytes = line.count
        guard state.usefulBytes + bytes <= limits.journalBytesMax,
          state.journal?.append(line) == true
        else { return .full }
      }
      _ = state.allowances.take(claims)
      Self.insert(operation, bytes: bytes, due: now, &state)
      remembered.add(1, ordering: .releasing)
      return .kept
    }
  }

  /// What `admit` would say of a check: the limit whose allowance does not cover it.
  func refusal(of claims: [AllowanceBook.Claim]) -> Name? {
    withState { $0.allowances.refusal(of: claims)?.limit }
  }

  /// The caller takes its operation back.
  func cancel(_ operation: FallbackOperation, now: NIODeadline = .now()) -> Cancellation {
    withState { state in
      if let refusal = state.refused[operation.id] {
        guard refusal.operation.difference(from: operation) == nil else { return .unknown }
        // It is not to be billed by hand any more either.
        state.refused.removeValue(forKey: operation.id)
        remembered.subtract(1, ordering: .releasing)
        state.usefulBytes -= state.journal == nil ? 0 : FallbackRecord.refused(refusal).line.count
        forget(operation.id, &state)
        return .unknown
      }
      guard var entry = state.entries[operation.id] else { return .unknown }
      if let field = entry.operation.difference(from: operation) { return .mismatch(field) }
      if entry.intent == .cancel && entry.isCancelKept { return .annulled(isKept: true) }
      entry.intent = .cancel
      entry.isCancelKept = true
      if state.journal != nil {
        let line = FallbackRecord.cancelled(operation.id).line
        entry.isCancelKept = state.journal?.append(line) == true
        if entry.isCancelKept {
          entry.bytes += line.count
          state.usefulBytes += line.count
        }
      }
      if entry.isDeferred {
        // What it waited for matters to a post only.
        entry.isDeferred = false
        state.deferred -= 1
        if !entry.isTaken { entry.place = Self.queue(operation.id, due: now, &state) }
      }
      state.entries[operation.id] = entry
      return .annulled(isKept: entry.isCancelKept)
    }
  }

  /// Whether a cancel of it was taken here that will not be forgotten.
  func isAnnulled(_ operation: FallbackOperation) -> Bool {
    withState { state in
      guard let entry = state.entries[operation.id] else { return false }
      return entry.intent == .cancel && entry.isCancelKept
        && entry.operation.difference(from: operation) == nil
    }
  }

  // MARK: - Posting

  /// What may be sent now, so that no more than `limit` are under way.
  func take(_ limit: Int, now: NIODeadline = .now()) -> [Errand] {
    withState { state in
      var errands: [Errand] = []
      for _ in 0..<Self.scanMax {
        guard state.taken < limit, let place = state.line.min, place.due <= now else { break }
        state.line.removeMin()
        guard var entry = state.entries[place.id], entry.place == place.number, !entry.isTaken
        else { continue }
        let account = entry.operation.subject.account.path
        if let trouble = state.troubles[account] {
          guard trouble.until <= now, trouble.probe == nil else {
            // Keeps its number, and with it its place among those of its account.
            let due = trouble.until > now ? trouble.until : now + Self.probePause
            state.line.insert(Place(due: due, number: place.number, id: place.id))
            continue
          }
          state.troubles[account]?.probe = place.id
        }
        entry.isTaken = true
        state.entries[place.id] = entry
        state.taken += 1
        errands.append(Errand(operation: entry.operation, intent: entry.intent))
      }
      return errands
    }
  }

  /// What became of an errand. `expired` must have been turned into another verdict.
  func resolve(
    _ errand: Errand, _ verdict: FallbackVerdict, now: NIODeadline = .now(), at time: WallTime
  ) -> Resolution {
    withState { state in
      let id = errand.operation.id
      guard var entry = state.entries[id], entry.isTaken else { return .settled }
      entry.isTaken = false
      state.taken -= 1
      let account = entry.operation.subject.account.path
      if verdict != .again {
        state.troubles.removeValue(forKey: account)
      } else if let trouble = state.troubles[account] {
        // Of those that were under way together, one failure says as much as all.
        if trouble.probe == id {
          let failures = trouble.failures + 1
          state.troubles[account] = Trouble(
            until: now + Self.pause(failures, max: Self.againPauseMax), failures: failures)
        }
      } else {
        state.troubles[account] = Trouble(until: now + Self.firstPause)
      }
      let isTurned = entry.intent != errand.intent
      var resolution = Resolution.waits
      switch verdict {
      case .done where !isTurned:
        remove(id, entry, &state)
        resolution = .settled
      case .refused(let reason) where !isTurned:
        let refusal = FallbackRefusal(operation: entry.operation, reason: reason, time: time)
        resolution = .parked(refusal, dropped: park(refusal, entry, &state))
      case .done, .refused:
        // Taken back while it was being posted: whatever came of the post, CANCEL is next.
        entry.failures = 0
        entry.place = Self.queue(id, due: now, &state)
        state.entries[id] = entry
      case .again, .later, .expired:
        let isDeferred = verdict != .again && !isTurned
        if isDeferred != entry.isDeferred { state.deferred += isDeferred ? 1 : -1 }
        entry.isDeferred = isDeferred
        let longest = isDeferred ? Self.laterPauseMax : Self.againPauseMax
        entry.place = Self.queue(id, due: now + Self.pause(entry.failures, max: longest), &state)
        entry.failures += 1
        state.entries[id] = entry
      }
      if verdict != .again && state.entries.count == state.deferred {
        state.allowances.outageEnded()
      }
      return resolution
    }
  }

  // MARK: - What an operator does with parked ones

  enum Retry: Equatable {
    case waits(FallbackRefusal)
    case unknown
    /// No room among those to be posted, or in the journal: it stays parked.
    case full
  }

  /// Puts a parked one among those to be posted. It draws on no allowance: it was let through.
  func retry(_ id: OperationID, now: NIODeadline = .now()) -> Retry {
    withState { state in
      guard let refusal = state.refused[id] else { return .unknown }
      guard state.entries.count < limits.operationsMax else { return .full }
      var bytes = 0
      if state.journal != nil {
        let line = FallbackRecord.admitted(refusal.operation).line
        bytes = line.count
        guard state.journal?.append(line) == true else { return .full }
        state.usefulBytes -= FallbackRecord.refused(refusal).line.count
      }
      state.refused.removeValue(forKey: id)
      Self.insert(refusal.operation, bytes: bytes, due: now, &state)
      return .waits(refusal)
    }
  }

  /// Forgets a parked one; answers what it was.
  func drop(_ id: OperationID) -> FallbackRefusal? {
    withState { state in
      guard let refusal = state.refused.removeValue(forKey: id) else { return nil }
      remembered.subtract(1, ordering: .releasing)
      if state.journal != nil {
        state.usefulBytes -= FallbackRecord.refused(refusal).line.count
      }
      forget(id, &state)
      return refusal
    }
  }

  /// Rewrites the journal where most of it is of no use. Blocks for the time of one sync; not to be
  /// called on an event loop.
  func compactIfLarge() {
    let found: (descriptor: Int32, path: String)? = withState { state in
      guard let size = state.journal?.size, let path = state.journal?.directoryToSync,
        size > 2 * state.usefulBytes + limits.journalWasteMax
      else { return nil }
      var lines: [UInt8] = []
      lines.reserveCapacity(state.usefulBytes)
      for entry in state.entries.values.sorted(by: { $0.place < $1.place }) {
        lines += FallbackRecord.admitted(entry.operation).line
        if entry.isCancelKept { lines += FallbackRecord.cancelled(entry.operation.id).line }
      }
      for refusal in state.refused.values { lines += FallbackRecord.refused(refusal).line }
      return state.journal?.beginRewrite(lines).map { ($0, path) }
    }
    guard let found else { return }
    let isSynced = fsync(found.descriptor) == 0
    close(found.descriptor)
    withState { $0.journal?.endRewrite(isSynced: isSynced) }
    if isSynced { FallbackJournal.syncDirectory(of: found.path) }
  }

  // MARK: - Accounts

  /// An account's configuration, as one of the loops heard it: in an outage each of them answers
  /// by what the sidecar knows, not by what it happened to hear itself.
  func learned(_ account: String, _ kept: KeptAccount?) {
    withState { $0.accounts.keep(kept, of: account) }
  }

  func configuration(of account: String) -> AccountConfig? {
    withState { $0.accounts[account] }
  }

  // MARK: - Under the lock

  private static func answer(
    to operation: FallbackOperation, _ state: borrowing State
  ) -> Answer? {
    guard let entry = state.entries[operation.id] else { return nil }
    if let field = entry.operation.difference(from: operation) { return .mismatch(field) }
    return entry.intent == .cancel ? .cancelled : .allowed
  }

  private static func insert(
    _ operation: FallbackOperation, bytes: Int, due: NIODeadline, _ state: inout State
  ) {
    let place = queue(operation.id, due: due, &state)
    state.entries[operation.id] = Entry(operation: operation, bytes: bytes, place: place)
    state.usefulBytes += bytes
  }

  private static func queue(
    _ id: OperationID, due: NIODeadline, _ state: inout State
  ) -> UInt64 {
    state.places += 1
    state.line.insert(Place(due: due, number: state.places, id: id))
    return state.places
  }

  private static func pause(_ failures: Int, max longest: TimeAmount) -> TimeAmount {
    let nanoseconds = firstPause.nanoseconds << Int64(min(failures, 20))
    return min(.nanoseconds(nanoseconds), longest)
  }

  private func remove(_ id: OperationID, _ entry: Entry, _ state: inout State) {
    state.entries.removeValue(forKey: id)
    if entry.isDeferred { state.deferred -= 1 }
    state.usefulBytes -= entry.bytes
    remembered.subtract(1, ordering: .releasing)
    forget(id, &state)
  }

  /// The journal need not bring it back. Where this cannot be written it will be posted once more,
  /// which counts nothing twice.
  private func forget(_ id: OperationID, _ state: inout State) {
    if state.entries.isEmpty {
      state.line = Heap()
      state.troubles = [:]
    }
    if state.entries.isEmpty && state.refused.isEmpty {
      state.journal?.reset()
    } else {
      _ = state.journal?.append(FallbackRecord.settled(id).line)
    }
  }

  private func park(
    _ refusal: FallbackRefusal, _ entry: Entry, _ state: inout State
  ) -> FallbackRefusal? {
    let id = refusal.operation.id
    state.entries.removeValue(forKey: id)
    if entry.isDeferred { state.deferred -= 1 }
    state.usefulBytes -= entry.bytes
    var dropped: FallbackRefusal?
    if state.refused.count >= limits.refusedMax, let oldest = state.refused.values.first {
      dropped = oldest
      state.refused.removeFirst()
      remembered.subtract(1, ordering: .releasing)
      if state.journal != nil {
        state.usefulBytes -= FallbackRecord.refused(oldest).line.count
        _ = state.journal?.append(FallbackRecord.settled(oldest.operation.id).line)
      }
    }
    state.refused[id] = refusal
    if state.journal != nil {
      // Where this cannot be written the entry comes back after a restart and is refused again.
      let line = FallbackRecord.refused(refusal).line
      state.usefulBytes += line.count
      _ = state.journal?.append(line)
    }
    if state.entries.isEmpty {
      state.line = Heap()
      state.troubles = [:]
    }
    return dropped
  }

  private static func recover(
    _ record: FallbackRecord, into state: inout State, now: NIODeadline
  ) {
    switch record {
    case .admitted(let operation):
      guard state.entries[operation.id] == nil else { return }
      if let refusal = state.refused.removeValue(forKey: operation.id) {
        // An operator had it posted again.
        state.usefulBytes -= FallbackRecord.refused(refusal).line.count
      }
      insert(operation, bytes: record.line.count, due: now, &state)
    case .cancelled(let id):
      guard state.entries[id]?.isCancelKept == false else { return }
      state.entries[id]?.intent = .cancel
      state.entries[id]?.isCancelKept = true
      state.entries[id]?.bytes += record.line.count
      state.usefulBytes += record.line.count
    case .settled(let id):
      state.usefulBytes -= state.entries.removeValue(forKey: id)?.bytes ?? 0
      if let refusal = state.refused.removeValue(forKey: id) {
        state.usefulBytes -= FallbackRecord.refused(refusal).line.count
      }
    case .refused(let refusal):
      let id = refusal.operation.id
      state.usefulBytes -= state.entries.removeValue(forKey: id)?.bytes ?? 0
      guard state.refused[id] == nil else { return }
      state.refused[id] = refusal
      state.usefulBytes += record.line.count
    }
  }
}
