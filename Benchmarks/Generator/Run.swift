// One run on one or more threads, with CPU readings around the measured time and a progress line
// while it goes on.

internal import Glibc
import Histogram
internal import Synchronization

package struct RunResult: Sendable {
  package struct Server: Sendable, Hashable {
    package var pid: Int32
    package var name: String
    package var cpuNanoseconds: Int64
  }

  package var tally: Tally
  /// Of the measured time.
  package var seconds: Double
  package var ownCPUNanoseconds: Int64
  package var servers: [Server]

  package var perSecond: Double { seconds > 0 ? Double(tally.measured) / seconds : 0 }

  /// Microseconds of server CPU for each answer.
  package var serverMicroseconds: Double {
    let total = servers.reduce(0) { $0 + Double($1.cpuNanoseconds) }
    return tally.measured > 0 ? total / 1000 / Double(tally.measured) : 0
  }

  package var ownMicroseconds: Double {
    tally.measured > 0 ? Double(ownCPUNanoseconds) / 1000 / Double(tally.measured) : 0
  }

  /// Microseconds at a percentile of latency.
  package func percentile(_ percent: Double) -> Double {
    tally.latency.totalCount == 0 ? 0 : Double(tally.latency.valueAtPercentile(percent)) / 1000
  }
}

package struct Run: Sendable {
  package var load: Load
  package var targets: [Target]
  package var workload: Workload
  package var seed: UInt64
  package var threads: Int
  package var serverPIDs: [Int32]
  /// Called about once a second with a line for people; nil: silence.
  package var report: (@Sendable (String) -> Void)?

  package init(
    load: Load, targets: [Target], workload: Workload, seed: UInt64, threads: Int = 1,
    serverPIDs: [Int32] = [], report: (@Sendable (String) -> Void)? = nil
  ) {
    self.load = load
    self.targets = targets
    self.workload = workload
    self.seed = seed
    self.threads = max(1, min(threads, load.connections))
    self.serverPIDs = serverPIDs
    self.report = report
  }

  // One of these for each protocol: the loop is compiled for it here, where another module would
  // drive it through witness tables.
  package func start(
    _ dialect: TollgateDialect, progress: RunProgress = RunProgress()
  ) throws -> RunResult { try drive(dialect, progress) }

  package func start(
    _ dialect: RedisDialect, progress: RunProgress = RunProgress()
  ) throws -> RunResult { try drive(dialect, progress) }

  /// The first thread is the caller's; it takes the CPU readings.
  private func drive<D: Dialect & Sendable>(
    _ dialect: D, _ progress: RunProgress
  ) throws -> RunResult {
    // A connection that closes is a result of send, not the end of the process.
    signal(SIGPIPE, SIG_IGN)
    // Thousands of connections need as many descriptors, where the system lets us have them.
    var files = rlimit()
    if unsafe getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &files) == 0 {
      files.rlim_cur = files.rlim_max
      unsafe setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &files)
    }
    let others = try (1..<threads).map { thread in
      try WorkerThread { try generator(dialect, progress, thread).run() }
    }
    let reporter = report.map { ProgressReporter(progress, $0) }
    var own: (start: Int64, end: Int64) = (0, 0)
    var servers: [Int32: (start: Int64, end: Int64)] = [:]
    var measurement: Measurement?
    var failure: (any Error)?
    do {
      measurement = try generator(dialect, progress, 0).run { starting in
        let cpu = ProcessUsage.own()
        if starting { own = (cpu, cpu) } else { own.end = cpu }
        for pid in serverPIDs {
          guard let used = ProcessUsage.of(pid) else { continue }
          if starting { servers[pid] = (used, used) } else { servers[pid]?.end = used }
        }
      }
    } catch {
      failure = error
      progress.stop.store(true, ordering: .relaxed)
    }
    reporter?.end()
    for other in others {
      switch other.join() {
      case .success(let more): measurement?.tally.add(more.tally)
      case .failure(let error): failure = failure ?? error
      case nil: failure = failure ?? BenchError("a thread ended without a result")
      }
    }
    if let failure { throw failure }
    guard let measurement else { throw BenchError("nothing was measured") }
    return RunResult(
      tally: measurement.tally, seconds: Double(measurement.ended - measurement.started) / 1e9,
      ownCPUNanoseconds: own.end - own.start,
      servers: serverPIDs.compactMap { pid in
        servers[pid].map {
          .init(pid: pid, name: ProcessUsage.name(pid), cpuNanoseconds: $0.end - $0.start)
        }
      })
  }

  private func generator<D: Dialect>(
    _ dialect: D, _ progress: RunProgress, _ thread: Int
  ) throws -> Generator<D> {
    try Generator(
      load: load, targets: targets, dialect: dialect, workload: workload, progress: progress,
      thread: thread, threads: threads, seed: seed)
  }
}

/// A thread of its own for one generator: it never yields, so it has no place in a pool.
final class WorkerThread: Sendable {
  private final class Job: Sendable {
    let body: @Sendable () throws -> Measurement
    let result = Mutex<Result<Measurement, any Error>?>(nil)

    init(_ body: @escaping @Sendable () throws -> Measurement) { self.body = body }
  }

  private let job: Job
  private let thread: pthread_t

  init(_ body: @escaping @Sendable () throws -> Measurement) throws {
    job = Job(body)
    var thread = pthread_t()
    let argument = unsafe Unmanaged.passRetained(job).toOpaque()
    let code = unsafe pthread_create(
      &thread, nil,
      { argument in
        // The only reader of the reference that init retained.
        guard let argument = unsafe argument else { return nil }
        let job = unsafe Unmanaged<Job>.fromOpaque(argument).takeRetainedValue()
        let result = Result { try job.body() }
        job.result.withLock { $0 = result }
        return nil
      }, argument)
    guard code == 0 else { throw BenchError.system("pthread_create", code) }
    self.thread = thread
  }

  func join() -> Result<Measurement, any Error>? {
    pthread_join(thread, nil)
    return job.result.withLock { $0 }
  }
}

/// Prints from a thread of its own, so that a run with one thread is not delayed by a terminal.
final class ProgressReporter: Sendable {
  private let ending = Atomic<Bool>(false)
  private let thread = Mutex<WorkerLine?>(nil)

  init(_ progress: RunProgress, _ report: @escaping @Sendable (String) -> Void) {
    let line = try? WorkerLine { [weak self] in
      var last = 0
      var second = 0
      while true {
        for _ in 0..<20 {
          usleep(50_000)
          guard let self, !self.ending.load(ordering: .relaxed) else { return }
        }
        second += 1
        let done = progress.completed.load(ordering: .relaxed)
        report(
          "\(second) s  \(done - last)/s  total \(done)  denied "
            + "\(progress.denied.load(ordering: .relaxed))  errors "
            + "\(progress.failed.load(ordering: .relaxed))  connections lost "
            + "\(progress.lost.load(ordering: .relaxed))")
        last = done
      }
    }
    thread.withLock { $0 = line }
  }

  func end() {
    ending.store(true, ordering: .relaxed)
    thread.withLock { $0 }?.join()
  }
}

/// A thread that answers nothing.
final class WorkerLine: Sendable {
  private let worker: WorkerThread

  init(_ body: @escaping @Sendable () -> Void) throws {
    worker = try WorkerThread {
      body()
      throw BenchError("done")
    }
  }

  func join() { _ = worker.join() }
}
