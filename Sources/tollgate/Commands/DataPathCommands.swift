// check and consume: the data path by hand, over the same frames that a backend sends.

import ArgumentParser
import TollgateCore
import TollgateServer
import TollgateWire

struct CheckCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "check", abstract: "Ask whether a subject may use a feature; consume nothing.",
    discussion: "Exit code 0: allowed, 1: denied.")

  @OptionGroup var request: RequestArguments
  @OptionGroup var attributes: AttributeOptions
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let id = DataPath.newID()
    let record = OperationRecord(
      id: id, subject: request.subject, items: request.asked, attributes: attributes.pairs)
    try await DataPath(id: id, asked: request.asked).run(.check, record, connection, output)
  }
}

struct ConsumeCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "consume",
    abstract: "Ask and consume, all features or none.",
    discussion: """
      Exit code 0: allowed, 1: denied. Repeated with the same --id, it consumes once and gets the \
      first answer again.
      """)

  @OptionGroup var request: RequestArguments
  @OptionGroup var attributes: AttributeOptions
  @OptionGroup var operation: OperationOptions
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let id = operation.id ?? DataPath.newID()
    let record = OperationRecord(
      id: id, subject: request.subject, items: request.asked, attributes: attributes.pairs)
    try await DataPath(id: id, asked: request.asked).run(.consume, record, connection, output)
  }
}
