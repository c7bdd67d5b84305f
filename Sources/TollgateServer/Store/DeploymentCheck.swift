// Whether Redis and the ledger belong to this deployment. Asked before any bucket is adopted or
// opened, of every Redis that answers (a new run id, or one that lost everything), because one that
// was away at the start is met later. A difference ends the process, naming both values: whatever
// it did instead would be wrong (DESIGN 1). The record is written only by a sidecar that the
// ledger, where there is one, has accepted: a wrong one must not be the first to write it.

import NIOConcurrencyHelpers
import TollgateCore
import TollgateRedis

final class DeploymentCheck: Sendable {
  private struct State {
    var passed: String?
    var wasLinked = false
  }

  private let state = NIOLockedValueBox(State())
  private let hasLedger: Bool
  private let differs: @Sendable (StartFailure) -> Void

  /// `differs` ends the process.
  init(hasLedger: Bool, differs: @escaping @Sendable (StartFailure) -> Void) {
    self.hasLedger = hasLedger
    self.differs = differs
  }

  /// True where this Redis may be worked with. `again`: although it was asked before.
  func passes(_ store: ColdStore, _ server: ServerIdentity, again: Bool) async -> Bool {
    if !again, state.withLockedValue({ $0.passed }) == server.runID { return true }
    let mayWrite = !hasLedger || state.withLockedValue { $0.wasLinked }
    do throws(StoreFailure) {
      if let failure = try await Self.failure(store, writing: mayWrite) {
        differs(failure)
        return false
      }
    } catch {
      return false
    }
    if mayWrite { state.withLockedValue { $0.passed = server.runID } }
    return true
  }

  /// Why this Redis must not be used; nil where it may. `writing`: the record, where there is none.
  static func failure(
    _ store: ColdStore, writing: Bool
  ) async throws(StoreFailure) -> StartFailure? {
    if let refusal = await store.refusal() { return StartFailure(description: refusal) }
    let differences = try await store.deploymentDifferences(writing: writing)
    guard !differences.isEmpty else { return nil }
    return StartFailure(
      description: "this deployment differs from the one recorded in Redis: "
        + differences.map(\.description).joined(separator: "; "))
  }

  func linked() { state.withLockedValue { $0.wasLinked = true } }

  /// The ledger's word, which names both values. A sidecar that was linked before goes on: the
  /// deployment it works for is right, and what is wrong is the ledger that was started.
  func ledgerDiffers(_ text: String) {
    guard !state.withLockedValue({ $0.wasLinked }) else { return }
    differs(StartFailure(description: "the ledger refuses this sidecar: \(text)"))
  }
}
