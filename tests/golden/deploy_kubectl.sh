#!/bin/sh
# made by gpuplan 0.1.0, plan sha256 e6ff4ace1e3787c754a50eb3f9bb1c5efc1fad1ac591df825e2937ec4c4795b6
# instance Tiny Deployment, sha256 5ea15ea15ea15ea15ea15ea15ea15ea15ea15ea15ea15ea15ea15ea15ea15ea1
# command: gpuplan export PLAN --to kubectl-sh -o deploy_kubectl.sh
# sh deploy_kubectl.sh: what would happen, every object judged by the server; APPLY=1 sh deploy_kubectl.sh: do it
# workers that stay are not applied again: `kubectl diff -f` of the plan's k8s manifests tells if they differ
# chat: vllm serve; weights: pods download MODEL unless a volume with them is added
#   requests of 4000/200 tokens: 50.0% to chat-both-tp1-batch32
#   requests of 4000/200 tokens: 50.0% to chat-both-tp2-batch64
# moe: sglang.launch_server; weights: pods download MODEL unless a volume with them is added
#   requests of 4000/200 tokens: 100.0% to moe-both-dp2-ep2-batch16
set -eu
APPLY=${APPLY:-0}
WAIT=${WAIT:-3600s}
tell() { printf '%s\n' "$*"; }
run() { if [ "$APPLY" = 1 ]; then "$@"; else tell "would run: $*"; fi; }

# apply: the objects on standard input
apply() { if [ "$APPLY" = 1 ]; then kubectl apply -f -; else kubectl apply --dry-run=server -f -; fi; }

# node LABEL WHAT: stop until a node has the label
node() {
  if [ -n "$(kubectl get nodes -l "$1" -o name)" ]; then return 0; fi
  tell "a node is missing, $2. When it has joined: kubectl label node NODE $1"
  if [ "$APPLY" = 1 ]; then return 1; fi
}

# ready RESOURCE NAME
ready() {
  case "$1" in
    deployment.apps) run kubectl rollout status "$1/$2" --timeout="$WAIT" ;;
    *) run kubectl wait "$1/$2" --for=condition=Available --timeout="$WAIT" ;;
  esac
}

# shrink RESOURCE NAME COUNT
shrink() {
  if [ "$3" = 0 ]; then run kubectl delete "$1/$2" --cascade=foreground --timeout="$WAIT"
  else run kubectl scale "$1/$2" --replicas="$3"; fi
}

# leave LABEL: the node takes no workers of the plan any more, and may go
leave() { run kubectl label nodes -l "$1" "${1%%=*}-"; tell "may be given back: the node of $1"; }

tell 'services'
apply <<'END_OF_OBJECTS'
apiVersion: v1
kind: ConfigMap
metadata:
  name: moe-experts-dff661
  labels:
    gpuplan/deployment: tiny-deployment-0789ce
    gpuplan/service: moe
    gpuplan/worker: both-dp2-ep2-batch16
    gpuplan/role: both
data:
  experts.json: "{\n  \"physical_to_logical_map\": [\n    [0, 1, 2, 3, 0, 1],\n    [2, 1, 0, 3, 0, 1],\n    [0, 1, 2, 3, 0, 1],\n    [3, 2, 1, 0, 3, 2]\n  ]\n}\n"
---
apiVersion: v1
kind: Service
metadata:
  name: chat-both-tp1-batch32
  labels:
    gpuplan/deployment: tiny-deployment-0789ce
    gpuplan/service: chat
    gpuplan/worker: both-tp1-batch32
    gpuplan/role: both
spec:
  selector:
    gpuplan/deployment: tiny-deployment-0789ce
    gpuplan/service: chat
    gpuplan/worker: both-tp1-batch32
  ports:
  - name: http
    port: 8000
    targetPort: http
---
apiVersion: v1
kind: Service
metadata:
  name: chat-both-tp2-batch64
  labels:
    gpuplan/deployment: tiny-deployment-0789ce
    gpuplan/service: chat
    gpuplan/worker: both-tp2-batch64
    gpuplan/role: both
spec:
  selector:
    gpuplan/deployment: tiny-deployment-0789ce
    gpuplan/service: chat
    gpuplan/worker: both-tp2-batch64
  ports:
  - name: http
    port: 8000
    targetPort: http
---
apiVersion: v1
kind: Service
metadata:
  name: moe-both-dp2-ep2-batch16
  labels:
    gpuplan/deployment: tiny-deployment-0789ce
    gpuplan/service: moe
    gpuplan/worker: both-dp2-ep2-batch16
    gpuplan/role: both
spec:
  selector:
    gpuplan/deployment: tiny-deployment-0789ce
    gpuplan/service: moe
    gpuplan/worker: both-dp2-ep2-batch16
  ports:
  - name: http
    port: 8000
    targetPort: http
END_OF_OBJECTS

tell 'step 1 of 1: 100.0% of the demand is served after it'
node gpuplan/node=big-1 'of big: 8 x h100_sxm'
apply <<'END_OF_OBJECTS'
apiVersion: apps/v1
kind: Deployment
metadata:
  name: chat-host-5c3e14
  labels:
    gpuplan/deployment: tiny-deployment-0789ce
    gpuplan/service: chat
    gpuplan/worker: both-tp1-batch32
    gpuplan/role: both
    app.kubernetes.io/name: chat-host-5c3e14
spec:
  replicas: 2
  progressDeadlineSeconds: 3600
  strategy:
    type: RollingUpdate
    rollingUpdate:
      maxSurge: 0
      maxUnavailable: 1
  selector:
    matchLabels:
      gpuplan/deployment: tiny-deployment-0789ce
      gpuplan/service: chat
      gpuplan/worker: both-tp1-batch32
      app.kubernetes.io/name: chat-host-5c3e14
  template:
    metadata:
      labels:
        gpuplan/deployment: tiny-deployment-0789ce
        gpuplan/service: chat
        gpuplan/worker: both-tp1-batch32
        gpuplan/role: both
        app.kubernetes.io/name: chat-host-5c3e14
    spec:
      containers:
      - name: vllm
        image: vllm/vllm-openai:v0.33.0
        command:
        - /bin/bash
        - -c
        - |
          set -euo pipefail
          MODEL=${MODEL:-org/chat}
          exec vllm serve "$MODEL" \
            --max-num-seqs 32 \
            --max-num-batched-tokens 8192 \
            --max-model-len 4300 \
            --gpu-memory-utilization 0.9 \
            "$@"
        - both
        args:
        - --host
        - 0.0.0.0
        - --port
        - '8000'
        resources:
          limits:
            nvidia.com/gpu: '1'
            rdma/hca: '1'
          requests:
            cpu: 1500m
            memory: 100Gi
        volumeMounts:
        - name: shm
          mountPath: /dev/shm
        ports:
        - containerPort: 8000
          name: http
        readinessProbe:
          httpGet:
            path: /health
            port: 8000
          periodSeconds: 10
      volumes:
      - name: shm
        emptyDir:
          medium: Memory
      affinity:
        nodeAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            nodeSelectorTerms:
            - matchExpressions:
              - key: kubernetes.io/hostname
                operator: In
                values:
                - host.internal
      tolerations:
      - key: nvidia.com/gpu
        operator: Exists
      - key: team
        operator: Equal
        value: llm
        effect: NoSchedule
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: chat-big-1-fb8896
  labels:
    gpuplan/deployment: tiny-deployment-0789ce
    gpuplan/service: chat
    gpuplan/worker: both-tp2-batch64
    gpuplan/role: both
    app.kubernetes.io/name: chat-big-1-fb8896
spec:
  replicas: 1
  progressDeadlineSeconds: 3600
  strategy:
    type: RollingUpdate
    rollingUpdate:
      maxSurge: 0
      maxUnavailable: 1
  selector:
    matchLabels:
      gpuplan/deployment: tiny-deployment-0789ce
      gpuplan/service: chat
      gpuplan/worker: both-tp2-batch64
      app.kubernetes.io/name: chat-big-1-fb8896
  template:
    metadata:
      labels:
        gpuplan/deployment: tiny-deployment-0789ce
        gpuplan/service: chat
        gpuplan/worker: both-tp2-batch64
        gpuplan/role: both
        app.kubernetes.io/name: chat-big-1-fb8896
    spec:
      containers:
      - name: vllm
        image: vllm/vllm-openai:v0.33.0
        command:
        - /bin/bash
        - -c
        - |
          set -euo pipefail
          MODEL=${MODEL:-org/chat}
          exec vllm serve "$MODEL" \
            --tensor-parallel-size 2 \
            --max-num-seqs 64 \
            --max-num-batched-tokens 8192 \
            --max-model-len 4300 \
            --gpu-memory-utilization 0.9 \
            "$@"
        - both
        args:
        - --host
        - 0.0.0.0
        - --port
        - '8000'
        resources:
          limits:
            nvidia.com/gpu: '2'
            rdma/hca: '2'
          requests:
            cpu: 3000m
            memory: 200Gi
        volumeMounts:
        - name: shm
          mountPath: /dev/shm
        ports:
        - containerPort: 8000
          name: http
        readinessProbe:
          httpGet:
            path: /health
            port: 8000
          periodSeconds: 10
      volumes:
      - name: shm
        emptyDir:
          medium: Memory
      affinity:
        nodeAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            nodeSelectorTerms:
            - matchExpressions:
              - key: gpuplan/node
                operator: In
                values:
                - big-1
              - key: nvidia.com/gpu.product
                operator: In
                values:
                - NVIDIA-H100-80GB-HBM3
      tolerations:
      - key: nvidia.com/gpu
        operator: Exists
      - key: team
        operator: Equal
        value: llm
        effect: NoSchedule
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: moe-big-1-b0c008
  labels:
    gpuplan/deployment: tiny-deployment-0789ce
    gpuplan/service: moe
    gpuplan/worker: both-dp2-ep2-batch16
    gpuplan/role: both
    app.kubernetes.io/name: moe-big-1-b0c008
spec:
  replicas: 1
  progressDeadlineSeconds: 3600
  strategy:
    type: RollingUpdate
    rollingUpdate:
      maxSurge: 0
      maxUnavailable: 1
  selector:
    matchLabels:
      gpuplan/deployment: tiny-deployment-0789ce
      gpuplan/service: moe
      gpuplan/worker: both-dp2-ep2-batch16
      app.kubernetes.io/name: moe-big-1-b0c008
  template:
    metadata:
      labels:
        gpuplan/deployment: tiny-deployment-0789ce
        gpuplan/service: moe
        gpuplan/worker: both-dp2-ep2-batch16
        gpuplan/role: both
        app.kubernetes.io/name: moe-big-1-b0c008
    spec:
      containers:
      - name: sglang
        image: lmsysorg/sglang:v0.5.23
        command:
        - /bin/bash
        - -c
        - |
          set -euo pipefail
          MODEL=${MODEL:-m}
          exec python -m sglang.launch_server --model-path "$MODEL" \
            --tp-size 2 \
            --attn-dp-size 2 \
            --ep-size 2 \
            --max-running-requests 16 \
            --chunked-prefill-size 16384 \
            --context-length 4300 \
            "$@"
        - both
        args:
        - --host
        - 0.0.0.0
        - --port
        - '8000'
        - --init-expert-location
        - /etc/gpuplan/experts.json
        - --ep-dispatch-algorithm
        - static
        resources:
          limits:
            nvidia.com/gpu: '2'
            rdma/hca: '2'
          requests:
            cpu: 3000m
            memory: 200Gi
        volumeMounts:
        - name: shm
          mountPath: /dev/shm
        - name: experts
          mountPath: /etc/gpuplan
          readOnly: true
        ports:
        - containerPort: 8000
          name: http
        readinessProbe:
          httpGet:
            path: /health
            port: 8000
          periodSeconds: 10
      volumes:
      - name: shm
        emptyDir:
          medium: Memory
      - name: experts
        configMap:
          name: moe-experts-dff661
      affinity:
        nodeAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            nodeSelectorTerms:
            - matchExpressions:
              - key: gpuplan/node
                operator: In
                values:
                - big-1
              - key: nvidia.com/gpu.product
                operator: In
                values:
                - NVIDIA-H100-80GB-HBM3
      tolerations:
      - key: nvidia.com/gpu
        operator: Exists
      - key: team
        operator: Equal
        value: llm
        effect: NoSchedule
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: chat-big-1-87027e
  labels:
    gpuplan/deployment: tiny-deployment-0789ce
    gpuplan/service: chat
    gpuplan/worker: both-tp1-batch32
    gpuplan/role: both
    app.kubernetes.io/name: chat-big-1-87027e
spec:
  replicas: 1
  progressDeadlineSeconds: 3600
  strategy:
    type: RollingUpdate
    rollingUpdate:
      maxSurge: 0
      maxUnavailable: 1
  selector:
    matchLabels:
      gpuplan/deployment: tiny-deployment-0789ce
      gpuplan/service: chat
      gpuplan/worker: both-tp1-batch32
      app.kubernetes.io/name: chat-big-1-87027e
  template:
    metadata:
      labels:
        gpuplan/deployment: tiny-deployment-0789ce
        gpuplan/service: chat
        gpuplan/worker: both-tp1-batch32
        gpuplan/role: both
        app.kubernetes.io/name: chat-big-1-87027e
    spec:
      containers:
      - name: vllm
        image: vllm/vllm-openai:v0.33.0
        command:
        - /bin/bash
        - -c
        - |
          set -euo pipefail
          MODEL=${MODEL:-org/chat}
          exec vllm serve "$MODEL" \
            --max-num-seqs 32 \
            --max-num-batched-tokens 8192 \
            --max-model-len 4300 \
            --gpu-memory-utilization 0.9 \
            "$@"
        - both
        args:
        - --host
        - 0.0.0.0
        - --port
        - '8000'
        resources:
          limits:
            nvidia.com/gpu: '1'
            rdma/hca: '1'
          requests:
            cpu: 1500m
            memory: 100Gi
        volumeMounts:
        - name: shm
          mountPath: /dev/shm
        ports:
        - containerPort: 8000
          name: http
        readinessProbe:
          httpGet:
            path: /health
            port: 8000
          periodSeconds: 10
      volumes:
      - name: shm
        emptyDir:
          medium: Memory
      affinity:
        nodeAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            nodeSelectorTerms:
            - matchExpressions:
              - key: gpuplan/node
                operator: In
                values:
                - big-1
              - key: nvidia.com/gpu.product
                operator: In
                values:
                - NVIDIA-H100-80GB-HBM3
      tolerations:
      - key: nvidia.com/gpu
        operator: Exists
      - key: team
        operator: Equal
        value: llm
        effect: NoSchedule
END_OF_OBJECTS
ready deployment.apps chat-host-5c3e14
ready deployment.apps chat-big-1-fb8896
ready deployment.apps moe-big-1-b0c008
ready deployment.apps chat-big-1-87027e

kubectl get pods -l gpuplan/deployment=tiny-deployment-0789ce -o wide
