// A reservation for as long as a block runs: the public face of ReservationMachine. The machine is
// behind a lock, since the block, its child tasks and the task that extends the hold all speak to
// it; every call is made after unlock.

internal import NIOConcurrencyHelpers
internal import TollgateWire

/// What a block of `TollgateClient.withReservation` has set aside, and tells what it used of.
///
/// All methods may be called from any task or thread, as long as the block runs.
public final class Reservation: Sendable {
  /// The reservation's id, which is the reserve's. Keep it to settle later by hand.
  public let id: OperationID
  /// Whose it is.
  public let subject: Subject
  /// What was estimated.
  public let estimate: [Item]
  /// The answer to the reserve.
  public let decision: Decision

  private struct State {
    var machine: ReservationMachine
    /// Settles of which nobody knows whether they were applied, oldest first.
    var unanswered: [UnsettledUse] = []
    /// The answer to the last settle.
    var answer: Decision?
  }

  private let client: TollgateClient
  private let attributes: [String: String]
  private let traceParent: String
  private let ttl: Duration
  private let state: NIOLockedValueBox<State>

  init(
    _ record: ReserveRecord, _ decision: Decision, sent: MonotonicTime, ttl: Duration,
    client: TollgateClient
  ) {
    id = record.id
    subject = record.subject
    estimate = record.operation.items
    attributes = record.operation.attributes
    traceParent = record.operation.traceParent
    self.decision = decision
    self.ttl = ttl
    self.client = client
    state = NIOLockedValueBox(
      State(machine: ReservationMachine(estimate, reserved: decision, sent: sent)))
  }

  /// Tells that so much **more** was used, of features that were reserved. It is settled when the
  /// block ends, or by `settle()`. An amount of 0 says that it is known to be nothing.
  ///
  /// Throws `.rejected` for a feature that was not reserved and an amount that is out of range;
  /// then nothing of `items` is counted.
  public func used(_ items: [Item]) throws(TollgateError) {
    let result = state.withLockedValue { state in
      do throws(TollgateError) {
        return Result<Void, TollgateError>.success(try state.machine.used(items))
      } catch {
        return .failure(error)
      }
    }
    try result.get()
  }

  /// Tells that so much more of one feature was used.
  public func used(_ feature: Name, _ amount: Int64) throws(TollgateError) {
    try used([Item(feature: feature, amount: amount)])
  }

  /// Says that nothing at all was used, for certain: the hold is released when the block ends,
  /// however it ends. Without effect once an amount above 0 was told.
  public func usedNothing() { state.withLockedValue { $0.machine.usedNothing() } }

  /// Settles what was told so far and keeps the rest of the hold, for a stream that is to stop at
  /// its limit: see `isLimitReached`. nil where nothing is to be settled.
  ///
  /// Where it throws `.rejected`, nothing was settled, and the next settle tells the same again.
  /// Where it throws `.outcomeUnknown`, the client goes on sending it.
  @discardableResult
  public func settle() async throws(TollgateError) -> Decision? {
    let items = state.withLockedValue { $0.machine.draw() }
    guard !items.isEmpty else { return nil }
    return try await tell(use(items, isFinal: false, isFloor: false), deadline: nil)
  }

  /// Whether the last settle could charge only a part of what was used.
  public var isLimitReached: Bool { state.withLockedValue { $0.machine.isLimitReached } }

  /// Whether the hold is known to be gone: it could not be extended in time, or somebody has ended
  /// it. What was used is charged all the same, without a limit being asked.
  public var isLost: Bool { state.withLockedValue { $0.machine.isLost } }

  /// Everything that was told as used, settled or not, in the order of the estimate; features that
  /// were never spoken of are left out.
  public var total: [Item] { state.withLockedValue { $0.machine.total } }

  // MARK: the task beside the block

  /// Extends the hold until it is over, or this task is cancelled.
  func keepAlive() async {
    while let due = state.withLockedValue({ $0.machine.nextExtension }) {
      let pause = max(0, due - Clock.monotonic)
      // Not a wait for anything: the time at which it is due.
      do { try await Task.sleep(for: .nanoseconds(pause)) } catch { return }
      let sent = Clock.monotonic
      do throws(TollgateError) {
        let decision = try await client.extend(subject, id, ttl: ttl)
        state.withLockedValue { $0.machine.extended(decision, sent: sent) }
      } catch {
        guard !Task.isCancelled else { return }
        state.withLockedValue { $0.machine.extensionFailed(error, Clock.monotonic) }
      }
    }
  }

  // MARK: the end

  /// Ends the reservation. nil: it is left to expire.
  func end(
    _ exit: ReservationMachine.Exit, patience: Duration
  ) async -> Result<Decision, TollgateError>? {
    // What is in doubt goes first: after the end it would find no hold to draw from.
    for use in state.withLockedValue({ $0.unanswered }) {
      _ = await result { () async throws(TollgateError) in
        try await self.tell(use, deadline: patience)
      }
    }
    let (ending, answer) = state.withLockedValue { state in
      (state.machine.end(exit), state.answer)
    }
    switch ending {
    case .none: return answer.map { .success($0) }
    case .leave: return nil
    case .release:
      return await result { () async throws(TollgateError) in
        try await self.client.release(self.subject, self.id, deadline: patience)
      }
    case .settle(let items, let isFinal, let isFloor):
      let use = use(items, isFinal: isFinal, isFloor: isFloor)
      let result = await result { () async throws(TollgateError) in
        try await self.tell(use, deadline: patience)
      }
      if case .failure(.rejected(let code, let message)) = result {
        client.refusedSettle(use, "\(code.name): \(message)")
      }
      return result
    }
  }

  private func result(
    _ body: () async throws(TollgateError) -> Decision
  ) async -> Result<Decision, TollgateError> {
    do throws(TollgateError) { return .success(try await body()) } catch { return .failure(error) }
  }

  private func use(_ items: [Item], isFinal: Bool, isFloor: Bool) -> UnsettledUse {
    UnsettledUse(
      id: client.newOperationID(), subject: subject, reservation: id, items: items,
      isFinal: isFinal, isFloor: isFloor, attributes: attributes, traceParent: traceParent)
  }

  private func tell(
    _ use: UnsettledUse, deadline: Duration?
  ) async throws(TollgateError) -> Decision {
    do throws(TollgateError) {
      let decision = try await client.ask(.settle(use.record), deadline)
      state.withLockedValue { state in
        state.unanswered.removeAll { $0.id == use.id }
        state.answer = decision
        state.machine.drawn(decision)
      }
      return decision
    } catch {
      state.withLockedValue { state in
        state.unanswered.removeAll { $0.id == use.id }
        switch error {
        case .outcomeUnknown: state.unanswered.append(use)
        case .rejected, .notSent: if !use.isFinal { state.machine.undrawn(use.items) }
        }
      }
      throw error
    }
  }
}

/// How `TollgateClient.withReservation` ended where nothing was thrown.
public enum ReservationOutcome<Value> {
  /// The reserve was denied: nothing is held, and the block did not run.
  case denied(Decision)
  /// The block returned, and the reservation is over: settled (`SETTLED`, `SETTLED_CLAMPED`,
  /// `SETTLED_LATE`, or `ALLOWED_POSTED` where the hold was lost) or released.
  case ended(Value, Decision)
  /// The block returned, and what it used is not charged yet. `.outcomeUnknown`: the client goes on
  /// sending it, nothing is to be done. `.rejected`: it never will be by itself, e.g. with the
  /// policy `reject` and more used than reserved; `onRefusedSettle` was told what it was.
  case unsettled(Value, TollgateError)

  /// What the block returned; nil where it did not run.
  public var value: Value? {
    switch self {
    case .denied: nil
    case .ended(let value, _), .unsettled(let value, _): value
    }
  }
}

extension ReservationOutcome: Sendable where Value: Sendable {}
