// What is wrong with the ledger although it is connected: it went backwards, or refuses to write.
// `status`, `doctor` and the metrics read it here.
//
// A ledger only moves up. When it links, what it says of each bucket is compared with what this
// sidecar worked under and with what Redis was told it acknowledged: a ledger that stands below
// that is an older copy of itself, or an empty one. Between the two readings it may simply have
// gone on, so a suspicion is confirmed by its own word, asked for afterwards: it is still behind,
// or it has recorded that it was. Then the shippers send again from where it stands what the
// outboxes still hold; what they do not hold becomes LOSS.

import Logging
import NIOConcurrencyHelpers
import TollgateCore
import TollgateRedis
import TollgateWire

final class LedgerWatch: Sendable {
  struct Setback: Hashable, Sendable {
    var from: StreamPosition
    var to: StreamPosition
  }

  private struct State {
    var setbacks: [Int: Setback] = [:]
    var resends: [Int: StreamPosition] = [:]
    var refusal = ""
  }

  private let state = NIOLockedValueBox(State())
  private let store: ColdStore
  private let ledger: LedgerLink
  private let healer: Healer
  private let metrics: Metrics
  private let logger: Logger

  init(
    store: ColdStore, ledger: LedgerLink, healer: Healer, metrics: Metrics, logger: Logger
  ) {
    self.store = store
    self.ledger = ledger
    self.healer = healer
    self.metrics = metrics
    self.logger = logger
  }

  // MARK: - What is told

  /// Empty: nothing is wrong.
  var problem: String {
    let (setbacks, refusal) = state.withLockedValue { ($0.setbacks, $0.refusal) }
    var parts: [String] = []
    if let text = Self.text(setbacks) { parts.append(text) }
    if !refusal.isEmpty { parts.append("refuses to write: " + refusal) }
    return parts.joined(separator: "; ")
  }

  static func text(_ setbacks: [Int: Setback]) -> String? {
    guard let (bucket, worst) = setbacks.min(by: { $0.key < $1.key }) else { return nil }
    let others = setbacks.count > 1 ? ", and \(setbacks.count - 1) more buckets" : ""
    return "the ledger went backwards from \(worst.from.epoch)/\(worst.from.sequence) to "
      + "\(worst.to.epoch)/\(worst.to.sequence) in bucket \(bucket)\(others): "
      + "restore its newest copy"
  }

  // MARK: - Batches

  /// From where the shipper of this bucket is to send again; once.
  func resend(bucket: Int, epoch: Int64) -> Int64? {
    state.withLockedValue { state in
      guard let position = state.resends[bucket] else { return nil }
      state.resends[bucket] = nil
      return position.epoch == epoch ? position.sequence : nil
    }
  }

  func answered() { state.withLockedValue { $0.refusal = "" } }

  func failed(_ failure: LedgerFailure) {
    guard case .refused(let code) = failure.kind, code != .overloaded, code != .draining else {
      return
    }
    let isNews = state.withLockedValue { state in
      defer { state.refusal = failure.description }
      return state.refusal.isEmpty
    }
    if isNews {
      logger.error("the ledger refuses a batch", metadata: ["reason": "\(failure)"])
    }
  }

  // MARK: - Links

  /// - Parameter worked: the epochs this sidecar worked under before the link.
  func linked(_ linked: Linked, worked: [Int: Int64]) async {
    let told = Dictionary(
      linked.buckets.map {
        (Int($0.bucket), StreamPosition(epoch: $0.epoch, sequence: $0.cursor))
      }, uniquingKeysWith: { max($0, $1) })
    var suspects: [Int: Setback] = [:]
    for bucket in 0...store.keys.map.control {
      let to = told[bucket] ?? StreamPosition(epoch: 0, sequence: 0)
      var from = StreamPosition(epoch: worked[bucket] ?? 0, sequence: 0)
      if let meta = try? await store.meta(bucket: bucket) {
        from = max(
          from,
          StreamPosition(epoch: meta.fence.epoch ?? 0, sequence: meta.acknowledged))
      }
      if to < from { suspects[bucket] = Setback(from: from, to: to) }
    }
    guard !suspects.isEmpty, let answer = try? await status() else { return }
    let confirmed = Self.confirmed(suspects, by: answer)
    let resends = confirmed.compactMapValues { setback -> StreamPosition? in
      setback.to.epoch == setback.from.epoch ? setback.to : nil
    }
    state.withLockedValue { state in
      state.setbacks.merge(confirmed) { _, new in new }
      state.resends.merge(resends) { _, new in new }
    }
    metrics.ledgerSetbacks.set(Int64(state.withLockedValue { $0.setbacks.count }))
    if let text = Self.text(confirmed) {
      logger.critical("\(text)", metadata: ["buckets": "\(confirmed.keys.sorted())"])
    }
  }

  /// Those that the ledger's status, asked after the suspicion arose, does not refute.
  static func confirmed(_ suspects: [Int: Setback], by status: Document) -> [Int: Setback] {
    let (positions, wentBack) = read(status)
    return suspects.filter { bucket, setback in
      wentBack.contains(bucket)
        || (positions[bucket] ?? StreamPosition(epoch: 0, sequence: 0)) < setback.from
    }
  }

  /// Where the ledger stands, and the buckets in which it recorded that it went backwards.
  private static func read(_ status: Document) -> ([Int: StreamPosition], Set<Int>) {
    var positions: [Int: StreamPosition] = [:]
    for item in status["status"]?["positions"]?.elements ?? [] {
      guard let bucket = item["bucket"]?.whole, let epoch = item["epoch"]?.whole,
        let cursor = item["cursor"]?.whole
      else { continue }
      positions[Int(bucket)] = StreamPosition(epoch: epoch, sequence: cursor)
    }
    let rows = status["losses"]?.elements ?? []
    // Once somebody has acknowledged it, what was lost then is known and is no trouble any more.
    let wentBack = rows.filter { $0["first"]?.whole == 0 && $0["acknowledged"] == nil }.compactMap {
      $0["bucket"]?.whole.map { Int($0) }
    }
    return (positions, Set(wentBack))
  }

  /// The ledger's status, as it is asked for now and then: what it caught up with is mended.
  func heard(_ status: Document) async {
    let (positions, wentBack) = Self.read(status)
    let (before, left) = state.withLockedValue { state in
      let before = state.setbacks.count
      state.setbacks = state.setbacks.filter { bucket, setback in
        wentBack.contains(bucket) || (positions[bucket] ?? setback.to) < setback.from
      }
      return (before, state.setbacks.count)
    }
    metrics.ledgerSetbacks.set(Int64(left))
    if before > 0 { await healer.sendGlobalAgain() }
  }

  private func status() async throws -> Document {
    let pages = try await ledger.pages(
      QueryRequest(.status, body: Document.object([]).jsonBytes()), as: QueryReply.self)
    guard pages.first?.status == nil, let answer = try? Document(json: pages.flatMap(\.body)) else {
      throw LedgerFailure(kind: .refused(.badFrame), description: "an unreadable answer")
    }
    return answer
  }
}
