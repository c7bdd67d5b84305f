// Reservations on real processes: what is held counts against every limit, what is settled is what
// Redis counts and the ledger bills, whoever is killed in between (DESIGN 4, promises 1, 3, 4).

import Foundation
import Testing
import TollgateClient
import TollgateTesting

extension LiveTests {
  @Suite(.serialized) struct Reservations {
    static let catalog = """
      levels: [account, member]
      features:
        calls: {metered: true, importance: money, unit: call, reservable: true}
        tokens: {metered: true, importance: money, unit: token, reservable: true}
        pings: {metered: true, importance: volume, unit: ping}
      plans:
        small:
          calls: [{id: calls.month, quota: 500, per: month}]
          pings: [{id: pings.month, quota: 500, per: month}]
        granted:
          tokens: [{id: tokens.credit, credit: true}]
      """
    /// A hold is whole for so long after its expiry.
    static let grace = Duration.milliseconds(HoldBounds.grace)

    private struct Statement: Decodable {
      struct Line: Decodable, Equatable {
        var feature: String
        var used: Int64
        var charged: Int64
        var absorbed: Int64
      }
      var lines: [Line]
    }

    // MARK: by its ends

    @Test func whatIsSettledIsChargedAndTheRestIsFree() async throws {
      try await withReservations { scene in
        let (client, id) = (scene.client, scene.client.newOperationID())
        let reserved = try await client.reserve(scene.ann, scene.calls(100), id: id)
        #expect(reserved.reason == .allowed && reserved.source == .redis)
        let expires = try #require(reserved.expires)
        #expect((55_000...60_000).contains(expires - reserved.time))
        #expect(try await scene.state() == CallState(settled: 0, held: 100))
        // Drawn as it goes: what is drawn is settled, the rest is held.
        let draw = try await client.settle(scene.ann, scene.calls(25), of: id, isFinal: false)
        #expect(draw.reason == .settled)
        #expect(try await scene.state() == CallState(settled: 25, held: 75))
        let settled = try await client.settle(scene.ann, scene.calls(35), of: id)
        #expect(settled.reason == .settled)
        #expect(settled.settlements == [.init(actual: 35, charged: 35)])
        #expect(try await scene.state() == CallState(settled: 60, held: 0))
        let second = await scene.error { () async throws(TollgateError) in
          try await client.settle(scene.ann, scene.calls(1), of: id)
        }
        #expect(second == .reservationEnded)
        try await scene.audit(60)
      }
    }

    @Test func whatIsReleasedIsFreeAndNothingIsCharged() async throws {
      try await withReservations { scene in
        let (client, id) = (scene.client, scene.client.newOperationID())
        _ = try await client.reserve(scene.ann, scene.calls(100), id: id)
        #expect(try await client.release(scene.ann, id).reason == .released)
        #expect(try await scene.state() == CallState(settled: 0, held: 0))
        let late = await scene.error { () async throws(TollgateError) in
          try await client.settle(scene.ann, scene.calls(1), of: id)
        }
        #expect(late == .reservationEnded)
      }
    }

    @Test func anExtendedHoldOutlivesItsFirstTime() async throws {
      try await withReservations { scene in
        let (client, id) = (scene.client, scene.client.newOperationID())
        let short = try await client.reserve(
          scene.ann, scene.calls(100), id: id, ttl: .milliseconds(400))
        let long = try await client.extend(scene.ann, id, ttl: .seconds(60))
        #expect(long.reason == .extended)
        #expect(try #require(long.expires) > #require(short.expires))
        try await Task.sleep(for: .milliseconds(400) + Self.grace + .milliseconds(1500))
        #expect(try await scene.state() == CallState(settled: 0, held: 100))
        let shorter = try await client.extend(scene.ann, id, ttl: .milliseconds(1))
        #expect(shorter.expires == long.expires)
        #expect(try await client.settle(scene.ann, scene.calls(7), of: id).reason == .settled)
        try await scene.audit(7)
      }
    }

    @Test func anExpiredHoldIsFreeAndItsLateSettleIsChargedOnce() async throws {
      try await withReservations { scene in
        let (client, id) = (scene.client, scene.client.newOperationID())
        _ = try await client.reserve(scene.ann, scene.calls(100), id: id, ttl: .milliseconds(300))
        try await scene.expiry()
        #expect(try await scene.state() == CallState(settled: 0, held: 0))
        let extend = await scene.error { () async throws(TollgateError) in
          try await client.extend(scene.ann, id, ttl: .seconds(60))
        }
        #expect(extend == .reservationEnded)
        let settle = client.newOperationID()
        let late = try await client.settle(scene.ann, scene.calls(40), of: id, id: settle)
        #expect(late.reason == .settledLate)
        let again = try await client.settle(scene.ann, scene.calls(40), of: id, id: settle)
        #expect(again.reason == .settledLate && again.replayed)
        let other = await scene.error { () async throws(TollgateError) in
          try await client.settle(scene.ann, scene.calls(40), of: id)
        }
        #expect(other == .reservationEnded)
        #expect(try await scene.state() == CallState(settled: 40, held: 0))
        try await scene.audit(40)
      }
    }

    @Test func aFeatureThatIsNotReservableIsRefusedByName() async throws {
      try await withReservations { scene in
        do throws(TollgateError) {
          _ = try await scene.client.reserve(
            scene.ann, [Item(feature: scene.pings, amount: 1)],
            id: scene.client.newOperationID())
          Issue.record("it was held")
        } catch {
          guard case .rejected(.badRequest, let message) = error else { throw error }
          #expect(message.contains("pings") && message.contains("reservable"), "\(message)")
        }
      }
    }

    @Test func pitfall19_useBeyondTheLimitIsAbsorbedAndRecorded() async throws {
      try await withReservations { scene in
        let (client, id) = (scene.client, scene.client.newOperationID())
        _ = try await client.consume(scene.ann, scene.calls(450))
        _ = try await client.reserve(scene.ann, scene.calls(30), id: id)
        let settled = try await client.settle(scene.ann, scene.calls(90), of: id)
        #expect(settled.reason == .settledClamped)
        #expect(settled.settlements == [.init(actual: 90, charged: 50)])
        try await scene.audit(500)
        let statement = try await offThePool {
          try JSONDecoder().decode(
            Statement.self, from: Data(try scene.stack.books("statement", ["ann"]).output.utf8))
        }
        // What was used, what of it is billed, and what nobody pays.
        #expect(statement.lines == [.init(feature: "calls", used: 540, charged: 500, absorbed: 40)])
      }
    }

    // MARK: many at once

    @Test func twentyReservesOfSeventyFiveOnFiveHundredGrantSix() async throws {
      try await withReservations(sidecars: 3) { scene in
        let clients = try await scene.clients()
        let answers = await withTaskGroup(of: (OperationID, Decision?).self) { group in
          for number in 0..<20 {
            let client = clients[number % clients.count]
            group.addTask {
              let id = client.newOperationID()
              let answer = try? await client.reserve(scene.ann, scene.calls(75), id: id)
              return (id, answer)
            }
          }
          return await group.reduce(into: []) { $0.append($1) }
        }
        let granted = answers.filter { $0.1?.isAllowed == true }
        #expect(granted.count == 6)
        #expect(answers.filter { $0.1?.reason == .quotaExceeded }.count == 14)
        #expect(try await scene.state() == CallState(settled: 0, held: 450))
        for (number, one) in granted.enumerated() {
          let settled = try await clients[number % clients.count].settle(
            scene.ann, scene.calls(70), of: one.0)
          #expect(settled.reason == .settled)
        }
        #expect(try await scene.state() == CallState(settled: 420, held: 0))
        try await scene.audit(420)
      }
    }

    // MARK: grants

    /// 8 of 3 + 10 burn the first grant whole and 5 of the second; 3 that were not used come back
    /// to the second.
    @Test func whatIsFreedGoesBackInReverseOrderOfBurning() async throws {
      try await withReservations(accounts: ["bob": "granted"]) { scene in
        let bob = try Subject("bob/m")
        for grant in [["3", "--grant", "a", "--priority", "10"], ["10", "--grant", "b"]] {
          _ = try await offThePool {
            try scene.stack.command(["grant", "add", "bob", "tokens"] + grant + ["--reason", "r"])
          }
        }
        let (client, id) = (scene.client, scene.client.newOperationID())
        let tokens = { [Item(feature: scene.tokens, amount: $0)] }
        let reserved = try await client.reserve(bob, tokens(8), id: id)
        #expect(reserved.reason == .allowed)
        #expect(
          reserved.burns == [
            .init(item: 0, grant: try Name("a"), amount: 3),
            .init(item: 0, grant: try Name("b"), amount: 5),
          ])
        #expect(try await scene.left("bob") == ["a": 0, "b": 5])
        let settled = try await client.settle(bob, tokens(5), of: id)
        #expect(settled.reason == .settled)
        #expect(try await scene.left("bob") == ["a": 0, "b": 8])
        try await scene.audit(["bob tokens": 5], subjects: ["bob/m"], touching: "tokens")
      }
    }

    // MARK: who is killed in between

    @Test func pitfall09_aKilledClientLeaksNothingAndItsLateSettleIsChargedOnce() async throws {
      try await withReservations { scene in
        let id = scene.client.newOperationID()
        let child = try await scene.reserveInAChild(id, 100, ttl: 1)
        #expect(try await scene.state() == CallState(settled: 0, held: 100))
        child.kill()
        try await scene.expiry()
        #expect(try await scene.state() == CallState(settled: 0, held: 0))
        let settle = scene.client.newOperationID()
        for number in 0..<3 {
          let late = try await scene.client.settle(
            scene.ann, scene.calls(40), of: id, id: settle)
          #expect(late.reason == .settledLate && late.replayed == (number > 0))
        }
        #expect(try await scene.state() == CallState(settled: 40, held: 0))
        try await scene.audit(40)
      }
    }

    @Test func aReservationOutlivesTheSidecarThatMadeIt() async throws {
      try await withReservations(sidecars: 2) { scene in
        let clients = try await scene.clients()
        let id = clients[0].newOperationID()
        _ = try await clients[0].reserve(scene.ann, scene.calls(100), id: id)
        try await offThePool { scene.stack.sidecar(0)?.kill() }
        let settled = try await clients[1].settle(
          scene.ann, scene.calls(40), of: id, deadline: .seconds(20))
        #expect(settled.reason == .settled)
        #expect(try await scene.state(clients[1]) == CallState(settled: 40, held: 0))
        try await offThePool { try scene.stack.startSidecar(0) }
        try await scene.audit(40)
      }
    }

    // MARK: the block

    @Test func aBlockLivesLongerThanItsHoldAndSettlesWhatItUsed() async throws {
      try await withReservations { scene in
        let ended = try await scene.client.withReservation(
          scene.ann, scene.calls(100), ttl: .milliseconds(500)
        ) { held in
          try held.used(scene.calls(10))
          try await Task.sleep(for: .milliseconds(1000) + Self.grace)
          #expect(!held.isLost)
          #expect(try await held.settle()?.reason == .settled)
          try held.used(scene.calls(5))
        }
        guard case .ended(_, let decision) = ended else {
          throw StackFailure(description: "\(ended)")
        }
        #expect(decision.reason == .settled)
        #expect(try await scene.state() == CallState(settled: 15, held: 0))
        try await scene.audit(15)
      }
    }

    @Test func pitfall16_aCancelledBlockSettlesTheLeastThatIsKnown() async throws {
      try await withReservations { scene in
        let task = Task {
          try await scene.client.withReservation(scene.ann, scene.calls(100)) { held in
            try held.used(scene.calls(10))
            try await Task.sleep(for: .seconds(600))
          }
        }
        try await eventually("it holds") { () async throws in
          try await scene.state() == CallState(settled: 0, held: 100)
        }
        task.cancel()
        guard case .failure(let error) = await task.result, error is CancellationError else {
          throw StackFailure(description: "it was not cancelled")
        }
        #expect(try await scene.state() == CallState(settled: 10, held: 0))
        try await scene.audit(10)
      }
    }

    // MARK: Redis

    @Test func aFlushedRedisIsToldOfLiveHoldsAgain() async throws {
      try await withReservations { scene in
        let (client, id) = (scene.client, scene.client.newOperationID())
        _ = try await client.consume(scene.ann, scene.calls(20))
        _ = try await client.reserve(scene.ann, scene.calls(100), id: id)
        try await scene.delivered()
        try await scene.flush()
        try await eventually(within: .seconds(30), "it is held again") { () async throws in
          try await scene.state() == CallState(settled: 20, held: 100)
        }
        let settled = try await client.settle(
          scene.ann, scene.calls(40), of: id, deadline: .seconds(20))
        #expect(settled.reason == .settled)
        #expect(try await scene.state() == CallState(settled: 60, held: 0))
        try await scene.audit(60)
      }
    }

    /// The sidecar that made it brings it back, the one that ended it says that it is over.
    @Test func whatWasGivenBackElsewhereIsNotHeldAgain() async throws {
      try await withReservations(sidecars: 2) { scene in
        let clients = try await scene.clients()
        let ids = [clients[0].newOperationID(), clients[0].newOperationID()]
        for id in ids {
          _ = try await clients[0].reserve(
            scene.ann, scene.calls(100), id: id, ttl: .seconds(600))
        }
        #expect(try await clients[1].release(scene.ann, ids[0]).reason == .released)
        // Of this one the ledger knows, of the other nobody but the sidecar that was asked.
        let nothing = try await clients[1].settle(scene.ann, scene.calls(0), of: ids[1])
        #expect(nothing.reason == .settled)
        try await scene.delivered()
        try await scene.flush()
        // Nothing is let in before holds had the time to be brought; ids of before are too old.
        var first: Reason?
        try await eventually(within: .seconds(30), "it is answered") { () async throws in
          first = try? await clients[1].consume(
            scene.ann, scene.calls(500), deadline: .seconds(20)
          ).reason
          return first != nil
        }
        #expect(first == .allowed)
        for id in ids {
          let late = await scene.error { () async throws(TollgateError) in
            try await clients[0].settle(scene.ann, scene.calls(1), of: id)
          }
          #expect(late == .reservationEnded)
        }
        #expect(try await scene.state() == CallState(settled: 500, held: 0))
        try await scene.audit(500)
      }
    }

    /// Whoever speaks of it before it is back is not told that nobody knows it.
    @Test func aHoldThatIsOnItsWayBackIsNotUnknown() async throws {
      try await withReservations(sidecars: 2) { scene in
        let clients = try await scene.clients()
        let id = clients[0].newOperationID()
        _ = try await clients[0].reserve(
          scene.ann, scene.calls(100), id: id, ttl: .seconds(600))
        try await scene.delivered()
        try await scene.flush()
        var answers: [ErrorCode] = []
        try await eventually(within: .seconds(30), every: .milliseconds(2), "it is given back") {
          () async throws in
          do throws(TollgateError) {
            return try await clients[1].release(scene.ann, id, deadline: .seconds(5)).reason
              == .released
          } catch {
            if case .rejected(let code, _) = error { answers.append(code) }
            return false
          }
        }
        // Ids of before the loss was noticed are too old, nothing else.
        #expect(Set(answers).isSubset(of: [.idTooOld]))
        #expect(try await scene.state() == CallState(settled: 0, held: 0))
      }
    }

    /// The id of the settle is older than the loss, so its use is posted; the hold is brought back
    /// by then, or later, and would be held for ten minutes more.
    @Test func aHoldThatComesBackAfterItsUseWasPostedIsLetGo() async throws {
      try await withReservations { scene in
        let (client, id) = (scene.client, scene.client.newOperationID())
        _ = try await client.reserve(scene.ann, scene.calls(100), id: id, ttl: .seconds(600))
        try await scene.delivered()
        let settle = client.newOperationID()
        try await scene.flush()
        let posted = try await client.settle(
          scene.ann, scene.calls(40), of: id, id: settle, deadline: .seconds(20))
        #expect(posted.reason == .allowedPosted)
        // Nothing is let in before holds had the time to be brought.
        try await eventually(within: .seconds(30), "all of the rest is free") { () async throws in
          let rest = try? await client.consume(
            scene.ann, scene.calls(460), deadline: .seconds(20))
          return rest?.reason == .allowed
        }
        #expect(try await scene.state() == CallState(settled: 500, held: 0))
        try await scene.audit(500)
      }
    }

    /// Redis and the only sidecar that knew of the hold are gone together.
    @Test func useWhoseHoldIsLostIsPostedOnce() async throws {
      try await withReservations(sidecars: 2) { scene in
        let clients = try await scene.clients()
        let id = clients[0].newOperationID()
        _ = try await clients[0].reserve(scene.ann, scene.calls(100), id: id)
        // The account itself must be known to somebody who lives on.
        try await scene.delivered()
        try await offThePool { scene.stack.sidecar(0)?.kill() }
        try await scene.flush()
        let settle = clients[1].newOperationID()
        for _ in 0..<2 {
          let posted = try await clients[1].settle(
            scene.ann, scene.calls(40), of: id, id: settle, deadline: .seconds(30))
          #expect(posted.reason == .allowedPosted)
        }
        try await offThePool { try scene.stack.startSidecar(0) }
        try await scene.audit(40)
      }
    }

    @Test func withoutRedisNothingIsHeldAndWhatWasUsedIsToldAfterwards() async throws {
      try await withReservations { scene in
        let (client, id) = (scene.client, scene.client.newOperationID())
        _ = try await client.reserve(scene.ann, scene.calls(100), id: id)
        try await offThePool { try scene.stack.redis.stop() }
        let denied = try await client.reserve(
          scene.ann, scene.calls(1), id: client.newOperationID(), deadline: .seconds(5))
        #expect(denied.reason == .storeUnavailable && denied.source == .policy)
        do throws(TollgateError) {
          _ = try await client.settle(
            scene.ann, scene.calls(40), of: id, deadline: .milliseconds(300))
          Issue.record("it was settled without Redis")
        } catch {
          guard case .outcomeUnknown = error else { throw error }
        }
        #expect(client.statistics.unsettled == 1)
        try await offThePool { try scene.stack.redis.start() }
        try await eventually(within: .seconds(30), "it is settled") { () async throws in
          client.statistics.settled == 1
        }
        #expect(try await scene.state() == CallState(settled: 40, held: 0))
        try await scene.audit(40)
      }
    }

    // MARK: by hand

    @Test func theCommandsHoldSettleAndGiveBack() async throws {
      try await withReservations { scene in
        let (hold, settle) = (scene.client.newOperationID(), scene.client.newOperationID())
        func run(_ words: [String]) async throws -> Stack.CommandResult {
          try await offThePool { try scene.stack.cli(words) }
        }
        let held = try await run(["reserve", "ann/m", "calls=100", "--id", hold.hex])
        #expect(held.status == .exited(0) && held.output.contains("held until "), "\(held)")
        let over = try await run(["reserve", "ann/m", "calls=401"])
        #expect(over.status == .exited(1) && over.output.contains("QUOTA_EXCEEDED"), "\(over)")
        let longer = try await run(["extend", "ann/m", hold.hex, "--ttl", "5m"])
        #expect(longer.status == .exited(0) && longer.output.contains("EXTENDED"), "\(longer)")
        let settled = try await run(["settle", "ann/m", hold.hex, "calls=40", "--id", settle.hex])
        #expect(settled.status == .exited(0) && settled.output.contains("SETTLED"), "\(settled)")
        let ended = try await run(["release", "ann/m", hold.hex])
        #expect(ended.status == .exited(4) && ended.errors.contains("reserve anew"), "\(ended)")
        try await scene.delivered()
        let back = try await run(["refund", "ann/m", settle.hex, "calls=15", "--reason", "r"])
        #expect(back.status == .exited(0) && back.output.contains("REFUNDED"), "\(back)")
        #expect(try await scene.state() == CallState(settled: 25, held: 0))
        try await scene.audit(25)
      }
    }
  }
}
