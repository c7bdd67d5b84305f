// Seeds of the simulation, and canaries: a simulation that cannot fail proves nothing.

import Foundation
import Testing
import TollgateTesting

@testable import TollgateEngine

@Suite(.blocking) struct LeaseSimulationTests {
  private static func base() -> UInt64 {
    var random = SeededRandom.fromEnvironment("LeaseSimulationTests")
    return random.next()
  }

  /// TOLLGATE_LEASE_SEEDS is how many of a hundred sidecars: `.ci/oracle` asks for a thousand, in a
  /// release build. Where nobody asks, the smaller ones are a third of what they are there.
  private static let seeds =
    ProcessInfo.processInfo.environment["TOLLGATE_LEASE_SEEDS"].flatMap { Int($0) }

  private static func seeds(_ count: Int) -> Int { seeds == nil ? count / 3 : count }

  /// Runs seeds until one finds something; says which.
  private func run(
    _ count: Int, _ plan: SimulationPlan, skipping: Int = 0,
    _ after: (Simulation) -> Void = { _ in }
  ) -> (findings: [String], stats: [String: Int]) {
    let base = Self.base() &+ UInt64(skipping)
    var stats: [String: Int] = [:]
    for index in 0..<count {
      let seed = base &+ UInt64(index)
      let simulation = Simulation(plan, seed: seed)
      simulation.run()
      if simulation.findings.isEmpty { after(simulation) }
      stats.merge(simulation.stats) { $0 + $1 }
      if !simulation.findings.isEmpty {
        return (["seed \(seed) (base \(base), + \(index))"] + simulation.findings.prefix(5), stats)
      }
    }
    return ([], stats)
  }

  @Test func theBooksBalanceWithAJournal() {
    var plan = SimulationPlan()
    plan.steps = 100
    let (findings, stats) = run(Self.seeds(600), plan)
    #expect(findings.isEmpty, "\(findings.joined(separator: "\n"))")
    // What is meant to happen did.
    for what in [
      "allowed", "replayed", "kills", "pauses", "late copies", "changes", "stale", "expiries",
    ] {
      #expect(stats[what, default: 0] > 20, "\(what): \(stats)")
    }
  }

  @Test func withoutAJournalTheDifferenceIsAtMostWhatWasExposed() {
    var plan = SimulationPlan()
    plan.hasJournal = false
    let (findings, _) = run(Self.seeds(210), plan)
    #expect(findings.isEmpty, "\(findings.joined(separator: "\n"))")
  }

  @Test func aLostBucketLosesNothingThatASidecarHas() {
    var plan = SimulationPlan()
    plan.epochs = 0.01
    let (findings, stats) = run(Self.seeds(150), plan)
    #expect(findings.isEmpty, "\(findings.joined(separator: "\n"))")
    #expect(stats["epochs", default: 0] > 20)
  }

  @Test func exactlyTheAmountIsAdmittedWhileSomebodyAsks() {
    var plan = SimulationPlan()
    plan.steps = 60
    plan.changes = 0
    let (findings, _) = run(60, plan) { $0.askToTheLast("a0") }
    #expect(findings.isEmpty, "\(findings.joined(separator: "\n"))")
  }

  /// Enough happens that a Redis which frees too much is found by more than every second seed.
  private static var hundred: SimulationPlan {
    var plan = SimulationPlan()
    plan.sidecars = 100
    plan.steps = 100
    plan.pauses = 0.02
    plan.leaps = 0.06
    return plan
  }

  @Test(arguments: 0..<2)
  func aHundredSidecarsShareThreeAccounts(half: Int) {
    let count = (Self.seeds ?? 4) / 2
    let (findings, stats) = run(count, Self.hundred, skipping: half * count)
    #expect(findings.isEmpty, "\(findings.joined(separator: "\n"))")
    print("\(count) seeds of 100 sidecars: \(stats.sorted { $0.key < $1.key })")
    for what in ["allowed", "kills", "pauses", "late copies", "changes", "expiries"] {
      #expect(stats[what, default: 0] > 0 || count < 100, "\(what): \(stats)")
    }
  }

  // MARK: - Canaries

  /// Each with the plan of a hundred sidecars, and no more of what goes wrong than there.
  @Test(arguments: [ModelRedis.Fault.expiryFreesEverything, .batchesAreNotDeduplicated])
  func whatRedisDoesWrongAmongAHundredIsFound(fault: ModelRedis.Fault) {
    var plan = Self.hundred
    plan.fault = fault
    let (findings, stats) = run(40, plan)
    #expect(!findings.isEmpty, "\(stats)")
    print("\(fault) among a hundred: \(findings.prefix(2))")
  }

  @Test func aRingThatForgetsAmongAHundredIsFound() {
    var plan = Self.hundred
    plan.forgetsRing = true
    #expect(!run(40, plan).findings.isEmpty)
  }

  @Test func anExpiryThatFreesEverythingIsFound() {
    var plan = SimulationPlan()
    plan.fault = .expiryFreesEverything
    plan.accounts = 1
    plan.pauses = 0.03
    plan.leaps = 0.1
    plan.changes = 0
    #expect(!run(100, plan).findings.isEmpty)
  }

  @Test func batchesThatAreDoneTwiceAreFound() {
    var plan = SimulationPlan()
    plan.fault = .batchesAreNotDeduplicated
    #expect(!run(50, plan).findings.isEmpty)
  }

  @Test func aRingThatForgetsIsFound() {
    var plan = SimulationPlan()
    plan.forgetsRing = true
    #expect(!run(50, plan).findings.isEmpty)
  }
}
