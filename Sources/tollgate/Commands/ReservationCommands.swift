// reserve, settle, release and extend: a reservation by hand, for trying it out and for ending one
// whose owner is gone.

import ArgumentParser
import TollgateCore
import TollgateServer
import TollgateWire

/// `reject`, `clamp` or `overdraft=500`.
struct OverrunArgument: ExpressibleByArgument {
  var policy: OverrunPolicy

  init?(argument: String) {
    switch argument {
    case OverrunPolicy.reject.name: policy = .reject
    case OverrunPolicy.clamp.name: policy = .clamp
    default:
      let parts = argument.split(separator: "=", maxSplits: 1)
      guard parts.count == 2, parts[0] == OverrunPolicy.overdraft(bound: 0).name,
        let bound = Int64(parts[1]), bound >= 0, bound <= Quantity.maximum
      else { return nil }
      policy = .overdraft(bound: bound)
    }
  }
}

/// `90s`, `1h30m`: how long a hold lives.
struct LifeArgument: ExpressibleByArgument {
  var milliseconds: UInt32

  init?(argument: String) {
    guard let time = Durations.milliseconds(argument), time >= 1, time <= HoldBounds.ttlMax else {
      return nil
    }
    milliseconds = UInt32(time)
  }
}

struct ReservationArguments: ParsableArguments {
  @Argument(help: ArgumentHelp("account[/member[/run…]]", valueName: "subject"))
  var subject: Subject

  @Argument(help: ArgumentHelp("The id that reserve printed.", valueName: "reservation"))
  var reservation: OperationID
}

struct ReserveCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "reserve",
    abstract: "Hold an estimate of what will be used, all features or none.",
    discussion: """
      Exit code 0: held, 1: denied. The id that is printed names the reservation: end it with \
      tollgate settle or tollgate release, or it expires by itself and nothing is charged. Only \
      features that the catalog calls reservable can be held. Repeated with the same --id, it \
      holds once and gets the first answer again.
      """)

  @OptionGroup var request: RequestArguments
  @Option(
    help: ArgumentHelp(
      "How long it is held unless extended, 1ms … 24h, e.g. 90s. (default: 60s)",
      valueName: "time"))
  var ttl: LifeArgument?
  @Option(
    help: ArgumentHelp(
      """
      What becomes of use beyond what is held: reject refuses such a settle, clamp charges what \
      the limits still leave, overdraft=N charges up to N units more, which are owed.
      """, valueName: "policy"))
  var overrun: OverrunArgument?
  @OptionGroup var attributes: AttributeOptions
  @OptionGroup var operation: OperationOptions
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let id = operation.id ?? DataPath.newID()
    let record = ReserveRecord(
      OperationRecord(
        id: id, subject: request.subject, items: request.asked, attributes: attributes.pairs),
      ttlMilliseconds: ttl?.milliseconds, overrun: overrun?.policy)
    try await DataPath(id: id, asked: request.asked).run(.reserve, record, connection, output)
  }
}

struct SettleCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "settle",
    abstract: "Say what was used of a reservation, and end it.",
    discussion: """
      The amounts are what was used since the settle before; =0 says that nothing was. What is \
      left of the hold is free. With --more the reservation lives on. An expired reservation is \
      charged all the same, for a day. Repeated with the same --id, it is charged once.
      """)

  @OptionGroup var target: ReservationArguments
  @Argument(
    help: ArgumentHelp(
      "What was used of each feature, e.g. tokens.output=512.", valueName: "feature=n"))
  var used: [AmountArgument]
  @Flag(help: "Draw this from the hold, and keep the rest.")
  var more = false
  @Flag(help: "The amounts are the least that is known: the work was cut off.")
  var floor = false
  @OptionGroup var attributes: AttributeOptions
  @OptionGroup var operation: OperationOptions
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func validate() throws {
    guard !(more && floor) else {
      throw ValidationError("--floor ends the reservation, --more does not: give one of them.")
    }
    try DataPath.checkItems(used.map(\.item))
  }

  func run() async throws {
    let id = operation.id ?? DataPath.newID()
    let items = used.map(\.item)
    let record = SettleRecord(
      id: id, subject: target.subject, reservation: target.reservation, isFinal: !more,
      isFloor: floor, items: items, attributes: attributes.pairs)
    try await DataPath(id: id, asked: items, named: ("reservation", target.reservation)).run(
      .settle, record, connection, output)
  }
}

struct ReleaseCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "release",
    abstract: "End a reservation of which nothing more was used.",
    discussion: """
      What was settled stays settled, what is still held is free. Only for who is certain: where \
      something may have been used, settle what is known (--floor), or let it expire.
      """)

  @OptionGroup var target: ReservationArguments
  @OptionGroup var operation: OperationOptions
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let id = operation.id ?? DataPath.newID()
    let record = ReleaseRecord(
      id: id, subject: target.subject, reservation: target.reservation)
    try await DataPath(id: id, named: ("reservation", target.reservation)).run(
      .release, record, connection, output)
  }
}

struct ExtendCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "extend",
    abstract: "Hold a reservation for so long from now, if that is longer than it would be.")

  @OptionGroup var target: ReservationArguments
  @Option(help: ArgumentHelp("1ms … 24h, e.g. 5m.", valueName: "time"))
  var ttl: LifeArgument
  @OptionGroup var operation: OperationOptions
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let id = operation.id ?? DataPath.newID()
    let record = ExtendRecord(
      id: id, subject: target.subject, reservation: target.reservation,
      ttlMilliseconds: ttl.milliseconds)
    try await DataPath(id: id, named: ("reservation", target.reservation)).run(
      .extend, record, connection, output)
  }
}
