// What an open failure policy let through, waiting to be posted under the same operation ids
// (promise 3). Bounded; full means the policy lets nothing more through. With a journal file every
// entry is written before its answer is given, so a killed sidecar posts it after its restart; the
// file does not survive the host, and without it the entries live as long as the process. Shared
// by all event loops of a sidecar; posting is idempotent by operation id, so an entry posted twice
// (a crash between the post and the note of it) charges once.
//
// The allowances of the outage stand beside the queue, under the same lock: they hold for the
// sidecar and not for each of its event loops, a retry of what was let through draws on none of
// them again, and they are whole again when the last entry is posted.

import Synchronization
import TollgateCore
import TollgateEngine

struct FallbackOperation: Sendable, Hashable {
  var id: OperationID
  var subject: Subject
  var items: [Item]
  var attributes: [String: String]
  var traceParent: String

  init(
    id: OperationID, subject: Subject, items: [Item], attributes: [String: String] = [:],
    traceParent: String = ""
  ) {
    self.id = id
    self.subject = subject
    self.items = items
    self.attributes = attributes
    self.traceParent = traceParent
  }

  init(_ request: Request) {
    self.init(
      id: request.id, subject: request.subject, items: request.items,
      attributes: request.attributes, traceParent: request.traceParent)
  }
}

final class FallbackQueue: Sendable {
  private struct State: ~Copyable {
    var pending: [OperationID: FallbackOperation] = [:]
    var taken: Set<OperationID> = []
    var journal: FallbackJournal?
    var allowances: AllowanceBook
    var accounts: AccountCache
  }

  enum Admission: Equatable {
    /// Kept: it may be let through, and will be posted.
    case kept
    /// It was let through before under this id.
    case known
    /// An allowance does not cover it.
    case exhausted(Name)
    /// The queue is full or the journal cannot be written.
    case full
  }

  private let state: Mutex<State>
  let operationsMax: Int

  /// Entries that the journal still holds are pending again.
  init(operationsMax: Int, journal: consuming FallbackJournal?, accountsMax: Int = 100_000) {
    self.operationsMax = operationsMax
    var state = State(
      allowances: AllowanceBook(entriesMax: operationsMax),
      accounts: AccountCache(capacity: accountsMax))
    if var journal {
      for operation in journal.recovered { state.pending[operation.id] = operation }
      journal.recovered = []
      state.journal = consume journal
    }
    self.state = Mutex(state)
  }

  var count: Int { state.withLock { $0.pending.count } }

  func contains(_ id: OperationID) -> Bool {
    state.withLock { $0.pending[id] != nil }
  }

  /// Takes the claims and keeps the operation, or does neither.
  func admit(_ operation: FallbackOperation, claims: [AllowanceBook.Claim]) -> Admission {
    state.withLock { state in
      if state.pending[operation.id] != nil { return .known }
      guard state.pending.count < operationsMax else { return .full }
      if let refused = state.allowances.refusal(of: claims) { return .exhausted(refused.limit) }
      if state.journal != nil, state.journal?.append(operation) != true { return .full }
      _ = state.allowances.take(claims)
      state.pending[operation.id] = operation
      return .kept
    }
  }

  /// An account's configuration, as one of the loops heard it: in an outage each of them answers
  /// by what the sidecar knows, not by what it happened to hear itself.
  func learned(_ account: String, _ config: AccountConfig?) {
    state.withLock { $0.accounts[account] = config }
  }

  func configuration(of account: String) -> AccountConfig? {
    state.withLock { $0.accounts[account] }
  }

  /// What `admit` would say of a check: the limit whose allowance does not cover it.
  func refusal(of claims: [AllowanceBook.Claim]) -> Name? {
    state.withLock { $0.allowances.refusal(of: claims)?.limit }
  }

  /// Up to `limit` entries that nobody is posting.
  func take(_ limit: Int) -> [FallbackOperation] {
    state.withLock { state in
      var batch: [FallbackOperation] = []
      for (id, operation) in state.pending where !state.taken.contains(id) {
        batch.append(operation)
        if batch.count == limit { break }
      }
      for operation in batch { state.taken.insert(operation.id) }
      return batch
    }
  }

  /// The post was recorded: the entry is done with. When the last one is, the journal is emptied.
  func posted(_ id: OperationID) {
    state.withLock { state in
      state.taken.remove(id)
      guard state.pending.removeValue(forKey: id) != nil else { return }
      guard state.pending.isEmpty else { return }
      state.journal?.reset()
      state.allowances.outageEnded()
    }
  }

  /// The post did not come through; another attempt will.
  func failed(_ id: OperationID) {
    state.withLock { _ = $0.taken.remove(id) }
  }
}
