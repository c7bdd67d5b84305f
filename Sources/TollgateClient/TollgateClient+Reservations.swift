// Reservations in the public client: the five requests by hand, and all of them as one block.

internal import TollgateWire

extension TollgateClient {
  // MARK: by hand

  /// Sets `items` aside for `subject` as an estimate of what will be used, all or nothing. An
  /// allowed answer says when the hold `expires`; what is held counts against every limit until
  /// then.
  ///
  /// No failure policy lets a reserve through: without a sidecar or its store it is denied
  /// STORE_UNAVAILABLE, since nothing could be held. After `.outcomeUnknown`, repeat it with the
  /// same id, or leave it: what it may hold expires.
  ///
  /// - Parameters:
  ///   - items: 1 … 16 of features that the catalog calls reservable, each once.
  ///   - id: the reservation's id; mint it with `newOperationID()` and keep it.
  ///   - ttl: how long the hold lives unless it is extended, 1 ms … 24 h.
  ///   - overrun: what becomes of use beyond what is held.
  ///   - attributes: choose the rates for the whole life of the reservation; at most 16.
  ///   - traceParent: W3C trace parent, or empty.
  ///   - deadline: how long the call may take, 1 ms … 10 min; nil: the configuration's default.
  public func reserve(
    _ subject: Subject, _ items: [Item], id: OperationID, ttl: Duration = .seconds(60),
    overrun: OverrunPolicy = .standard, attributes: [String: String] = [:],
    traceParent: String = "", deadline: Duration? = nil
  ) async throws(TollgateError) -> Decision {
    let operation = Record(
      id: id, subject: subject, items: items, attributes: attributes, traceParent: traceParent)
    return try await ask(
      .reserve(
        ReserveRecord(operation, ttlMilliseconds: ttl.milliseconds, overrun: overrun)), deadline)
  }

  /// Tells what was used of a reservation since the settle before, and ends it where `isFinal`. The
  /// answer's `settlements` say what of it is charged and what is absorbed.
  ///
  /// It never ends without being told: where no sidecar answers within the deadline, or the task is
  /// cancelled, the call ends as `.outcomeUnknown` and the client **goes on sending it** under its
  /// id until it is answered (at most `unsettledMax` of them; see `shutdown` and `UnfinishedWork`).
  /// Only `.rejected` and `.notSent` say that nothing will come of it.
  ///
  /// Where nobody knows the reservation any more (it was lost with Redis, or expired longer than a
  /// day ago), or it ended before a settle came that was not final, what was used is posted
  /// under the settle's id: ALLOWED_POSTED.
  ///
  /// - Parameters:
  ///   - items: 1 … 16; an amount of 0 says that nothing was used.
  ///   - reservation: the id of the reserve.
  ///   - isFinal: false draws from the hold and leaves it alive.
  ///   - isFloor: what is told is the least that is known; only of a final settle.
  ///   - id: the settle's own identity; nil: a fresh one. To repeat a settle, pass its id.
  ///   - attributes: carried into the ledger, and choose the rates where the use is posted.
  public func settle(
    _ subject: Subject, _ items: [Item], of reservation: OperationID, isFinal: Bool = true,
    isFloor: Bool = false, id: OperationID? = nil, attributes: [String: String] = [:],
    traceParent: String = "", deadline: Duration? = nil
  ) async throws(TollgateError) -> Decision {
    let record = SettleRecord(
      id: id ?? newOperationID(), subject: subject, reservation: reservation, isFinal: isFinal,
      isFloor: isFloor, items: items, attributes: attributes, traceParent: traceParent)
    return try await ask(.settle(record), deadline)
  }

  /// Ends a reservation of which nothing more was used; what is still held is free. For a caller
  /// who is certain of that: where it is not known what was used, settle the least, or let the hold
  /// expire. It is not repeated after its deadline.
  public func release(
    _ subject: Subject, _ reservation: OperationID, id: OperationID? = nil,
    traceParent: String = "", deadline: Duration? = nil
  ) async throws(TollgateError) -> Decision {
    let record = ReleaseRecord(
      id: id ?? newOperationID(), subject: subject, reservation: reservation,
      traceParent: traceParent)
    return try await ask(.release(record), deadline)
  }

  /// Lets the hold live for `ttl` (1 ms … 24 h) from now, and never shorter than it would. The
  /// answer's `expires` says until when.
  public func extend(
    _ subject: Subject, _ reservation: OperationID, ttl: Duration, id: OperationID? = nil,
    traceParent: String = "", deadline: Duration? = nil
  ) async throws(TollgateError) -> Decision {
    let record = ExtendRecord(
      id: id ?? newOperationID(), subject: subject, reservation: reservation,
      ttlMilliseconds: ttl.milliseconds, traceParent: traceParent)
    return try await ask(.extend(record), deadline)
  }

  /// Gives back what an earlier operation of the subject was charged, never more than that in all:
  /// the `items`, or everything where there are none. The answer's `settlements` say what came
  /// back, as numbers that are not positive.
  ///
  /// - Parameters:
  ///   - operation: the id of the consume, post or settle that charged.
  ///   - id: the refund's own identity; nil: a fresh one. Another id refunds again.
  ///   - reason: for people, at most 256 bytes.
  public func refund(
    _ subject: Subject, _ operation: OperationID, _ items: [Item] = [], id: OperationID? = nil,
    reason: String = "", attributes: [String: String] = [:], traceParent: String = "",
    deadline: Duration? = nil
  ) async throws(TollgateError) -> Decision {
    let record = RefundRecord(
      id: id ?? newOperationID(), subject: subject, corrects: operation, items: items,
      attributes: attributes, traceParent: traceParent, reason: reason)
    return try await ask(.refund(record), deadline)
  }

  // MARK: as a block

  /// Runs `body` with `items` set aside, and charges what it says it used.
  ///
  /// While the block runs the hold is extended whenever half of the time it has left has passed,
  /// and where that fails again at half of the rest. When it ends:
  ///
  /// * It returned: what `used` was told is settled. Features it never spoke of count as 0, and the
  ///   settle is then marked as the least that is known.
  /// * It threw, or its task was cancelled: what `used` was told is settled as the least that is
  ///   known.
  /// * It threw and had told nothing: the hold is left to expire. What was used is not known, so it
  ///   is neither charged nor released; it can still be settled by hand for a day.
  /// * It called `usedNothing` and used nothing: the hold is released.
  ///
  /// The last settle is made even where the task was cancelled, and awaited for at most
  /// `ClientConfiguration.settlePatience`; after that the client goes on sending it.
  ///
  /// Throws what the block throws, and `TollgateError` where the reserve got no answer; then the
  /// block did not run. A denial is a result.
  public func withReservation<Value>(
    _ subject: Subject, _ items: [Item], ttl: Duration = .seconds(60),
    overrun: OverrunPolicy = .standard, attributes: [String: String] = [:],
    traceParent: String = "", deadline: Duration? = nil,
    _ body: (Reservation) async throws -> Value
  ) async throws -> ReservationOutcome<Value> {
    let operation = Record(
      id: newOperationID(), subject: subject, items: items, attributes: attributes,
      traceParent: traceParent)
    let record = ReserveRecord(operation, ttlMilliseconds: ttl.milliseconds, overrun: overrun)
    let sent = Clock.monotonic
    let decision: Decision
    do throws(TollgateError) {
      decision = try await ask(.reserve(record), deadline)
    } catch {
      abandon(record, error)
      throw error
    }
    guard decision.isAllowed else { return .denied(decision) }
    let reservation = Reservation(record, decision, sent: sent, ttl: ttl, client: self)
    let keeper = Task { await reservation.keepAlive() }
    let value: Value
    do {
      value = try await body(reservation)
    } catch {
      _ = await end(reservation, .cut, keeper)
      throw error
    }
    switch await end(reservation, Task.isCancelled ? .cut : .returned, keeper) {
    case .success(let answer): return .ended(value, answer)
    case .failure(let error): return .unsettled(value, error)
    // Cancelled before it said anything: the hold expires, and the reserve is the last word.
    case nil: return .ended(value, decision)
    }
  }

  /// Settles in a task of its own: that the caller's was cancelled is no reason to lose what it
  /// used.
  private func end(
    _ reservation: Reservation, _ exit: ReservationMachine.Exit, _ keeper: Task<Void, Never>
  ) async -> Result<Decision, TollgateError>? {
    keeper.cancel()
    let patience = configuration.settlePatience
    return await Task { await reservation.end(exit, patience: patience) }.value
  }

  /// Nothing was used of what an unanswered reserve may hold, for its block never ran. Asked once,
  /// in the background; the hold expires anyway.
  private func abandon(_ record: ReserveRecord, _ error: TollgateError) {
    guard case .outcomeUnknown = error else { return }
    Task { _ = try? await release(record.subject, record.id) }
  }

  /// The last chance to keep what nobody will charge.
  func refusedSettle(_ use: UnsettledUse, _ reason: String) {
    configuration.onRefusedSettle?(RefusedSettle(use: use, reason: reason))
  }
}

extension Duration {
  /// Whole milliseconds; what is out of the wire's range is refused there.
  fileprivate var milliseconds: UInt32 {
    UInt32(clamping: nanoseconds(in: 0...Int64.max) / 1_000_000)
  }
}
