// Reservations beside the request path: ended when their time has come, and brought into a new
// epoch, from what still lies in Redis and from what sidecars remember of those they made.

import Logging
import NIOCore
import TollgateCore
import TollgateRedis

extension Healer {
  nonisolated func expireHolds(account: String, bucket: Int, epoch: Int64) {
    Task { () async in
      await self.expire(account: account, bucket: bucket, epoch: epoch)
      self.holdsAreReady(account)
    }
  }

  nonisolated func bringHolds(account: String, bucket: Int, epoch: Int64, known: [StoredHold]) {
    Task { () async in
      await self.bring(account: account, bucket: bucket, epoch: epoch, known: known)
      self.holdsAreReady(account)
    }
  }

  nonisolated func tellOfEnds(_ ends: [HoldEnd], bucket: Int, epoch: Int64) {
    Task { () async in await self.bury(ends, bucket: bucket, epoch: epoch) }
  }

  private nonisolated func holdsAreReady(_ account: String) {
    for loop in loops { loop.onLoop { $0.resume(.holds(account)) } }
  }

  /// Everything of the account that is due by Redis's clock; the script judges again.
  func expire(account path: String, bucket: Int, epoch: Int64) async {
    guard let account = try? Subject(path) else { return }
    do {
      let holds = try await store.holds(of: account)
      let now = try await store.now(bucket: bucket)
      let due = holds.filter { $0.expires + HoldBounds.grace <= now }
      for (subject, ours) in Dictionary(grouping: due, by: \.subject) {
        var rest = ours.map(\.reservation)[...]
        while !rest.isEmpty {
          let some = Array(rest.prefix(ExpireCall.reservationsMax))
          rest = rest.dropFirst(some.count)
          let ended = try await store.expire(some, of: subject, bucket: bucket, epoch: epoch)
          metrics.holdsExpired.add(ended ?? 0)
        }
      }
    } catch {
      logger.debug(
        "reservations not expired", metadata: ["account": "\(path)", "error": "\(error)"])
    }
  }

  /// Whether the ledger knows of no settle that this memory, or an older snapshot, does not: others
  /// may have ended the reservation, and one that is over must not be held, or charged, again. What
  /// is not brought back is not lost: who settles it is told that it is unknown, and posts what was
  /// used.
  private func isNewest(_ hold: StoredHold, _ bucket: Int) async throws -> Bool {
    guard ledger != nil else { return true }
    let books = try await corrector.books(of: hold.reservation, bucket: bucket)
    return Set(books.settles).count <= Int(hold.settles)
  }

  /// Of what lies in Redis from an older epoch and what is remembered here, what became of it last.
  func bring(
    account path: String, bucket: Int, epoch: Int64, known: [StoredHold]
  ) async {
    guard let account = try? Subject(path) else { return }
    do {
      let stored = try await store.holds(of: account).filter { $0.epoch != epoch }
      let latest = Dictionary(
        (stored + known).map { ($0.reservation, $0) },
        uniquingKeysWith: { $1.isLater(than: $0) ? $1 : $0 })
      for hold in latest.values {
        let bytes = try await isNewest(hold, bucket) ? hold.bytes : []
        let effect = try await represent(
          hold.reservation, bytes, of: hold.subject, bucket: bucket, epoch: epoch)
        if effect == .brought, !bytes.isEmpty { metrics.holdsBrought.add() }
      }
      _ = try await store.represent(nil, of: account, bucket: bucket, epoch: epoch)
    } catch StoreFailure.fenced {
      await fenced(bucket: bucket, epoch: epoch)
    } catch {
      logger.debug(
        "reservations not brought", metadata: ["account": "\(path)", "error": "\(error)"])
    }
  }

  /// An account that is not there in this epoch is loaded.
  private func represent(
    _ reservation: OperationID, _ bytes: [UInt8], of subject: Subject, bucket: Int, epoch: Int64
  ) async throws -> RepresentCall.Effect {
    let effect = try await store.represent(
      reservation, bytes, of: subject, bucket: bucket, epoch: epoch)
    guard effect == .unseeded else { return effect }
    _ = await load(account: subject.account, bucket: bucket, epoch: epoch, purpose: .post)
    return try await store.represent(reservation, bytes, of: subject, bucket: bucket, epoch: epoch)
  }

  static let buryAttemptsMax = 10

  /// What ended through this sidecar is not brought back by others that do not know it: what comes
  /// afterwards finds it written down, and what was brought before is free again.
  func bury(_ ends: [HoldEnd], bucket: Int, epoch: Int64) async {
    var rest = ends[...]
    for attempt in 1...Self.buryAttemptsMax {
      do {
        while !rest.isEmpty {
          let some = Array(rest.prefix(BuryCall.endsMax))
          for end in try await store.bury(some, bucket: bucket, epoch: epoch) {
            _ = try await represent(
              end.reservation, [], of: end.subject, bucket: bucket, epoch: epoch)
          }
          rest = rest.dropFirst(some.count)
        }
        return
      } catch StoreFailure.fenced {
        // Under the next epoch all of them are told again.
        return await fenced(bucket: bucket, epoch: epoch)
      } catch {
        logger.debug(
          "ends of reservations not told", metadata: ["bucket": "\(bucket)", "error": "\(error)"])
      }
      guard open[bucket] == epoch else { return }
      // Redis did not answer, or refused: longer each time, and under a new epoch not at all.
      try? await Task.sleep(for: .milliseconds(50 * attempt))
    }
  }
}
