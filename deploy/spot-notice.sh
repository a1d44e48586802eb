#!/usr/bin/env bash
# On a spot machine: hears that the provider takes it back, and empties it in time. Ends at once where machines are not taken back.
# Started by worker_start_ray_commands of cluster.yaml and deploy/cluster.gcp.yaml; on Kubernetes the preStop hook does the same.
set -euo pipefail

PROVIDER=${1:?usage: spot-notice.sh aws|gcp}
METADATA=${METADATA:-http://169.254.169.254}
EVERY_S=${EVERY_S:-5}   # AWS gives notice two minutes before, GCP thirty seconds

aws() {
  local token
  token=$(curl --silent --fail --max-time 2 --request PUT --header "X-aws-ec2-metadata-token-ttl-seconds: 60" "$METADATA/latest/api/token")
  curl --silent --fail --max-time 2 --header "X-aws-ec2-metadata-token: $token" "$METADATA/latest/meta-data/$1"
}

gcp() { curl --silent --fail --max-time 2 --header "Metadata-Flavor: Google" "$METADATA/computeMetadata/v1/instance/$1"; }

case $PROVIDER in
  aws)
    [ "$(aws instance-life-cycle)" = spot ] || exit 0
    address=$(aws local-ipv4)
    going() { aws spot/instance-action >/dev/null; }
    left_s=110
    ;;
  gcp)
    [ "$(gcp scheduling/preemptible)" = TRUE ] || exit 0
    address=$(gcp network-interfaces/0/ip)
    going() { [ "$(gcp preempted)" = TRUE ]; }
    left_s=25
    ;;
  *)
    echo "spot-notice.sh: $PROVIDER: aws or gcp is known" >&2
    exit 2
    ;;
esac

until going; do sleep "$EVERY_S"; done
exec medr3 drain "$address" --deadline "$left_s" --wait
